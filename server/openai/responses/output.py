"""`ResponseOutput`: the items that a reply is made of, and the events that tell how they grow."""

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orjson import Fragment

from quire.server.openai.responses.items import new_id, output_text
from quire.server.openai.responses.replies import ItemStatus
from quire.server.openai.responses.token_spans import Piece
from quire.server.openai.tools.events import Kind

StreamEvent = dict[str, Any]

_ITEMS: Mapping[Kind, str] = {
    "content": "message",
    "reasoning": "reasoning",
    "call": "function_call",
    "arguments": "function_call",
}


class ResponseOutput:
    """Items come one after another: a new one closes the one before it."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._is_open = False
        self._texts: list[str] = []
        self._logprobs: list[Fragment] = []

    def add(self, pieces: Sequence[Piece]) -> Iterator[StreamEvent]:
        """The events of `pieces`; what follows each other in one item is one event."""
        for piece in _merged(pieces):
            if piece.kind == "end":
                if self._is_open:
                    yield from self._close("completed")
                continue
            kind = _ITEMS[piece.kind]
            if piece.kind == "call" or not self._is_open or self.items[-1]["type"] != kind:
                yield from self.close()
                yield from self._open(kind, piece.text)
            if piece.kind != "call":
                self._texts.append(piece.text)
                self._logprobs += piece.logprobs
                yield self._delta(kind, piece)

    def close(self, *, is_cut: bool = False) -> Iterator[StreamEvent]:
        """End the open item, if there is one. It is incomplete if it `is_cut`, and so is a call
        whose own end did not come."""
        if self._is_open:
            is_call = self.items[-1]["type"] == "function_call"
            yield from self._close("incomplete" if is_cut or is_call else "completed")

    def _close(self, status: ItemStatus) -> Iterator[StreamEvent]:
        self._is_open = False
        item, text = self.items[-1], "".join(self._texts)
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            yield {**self._at("response.function_call_arguments.done"), "arguments": text}
        else:
            part = _part(item["type"], text, self._logprobs)
            item["content"] = [part]
            done: StreamEvent = {key: part[key] for key in ("text", "logprobs") if key in part}
            yield {**self._at(f"response.{part['type']}.done", part=0), **done}
            yield {**self._at("response.content_part.done", part=0), "part": part}
        self._texts, self._logprobs = [], []
        yield self._whole("response.output_item.done")

    def ensure_message(self) -> Iterator[StreamEvent]:
        """An empty message where there is no item."""
        if not self.items:
            yield from self._open("message", "")

    def _open(self, kind: str, name: str) -> Iterator[StreamEvent]:
        item: dict[str, Any] = {"id": new_id(kind), "type": kind, "status": "in_progress"}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        else:
            call_id = f"call_{uuid.uuid4().hex[:24]}"
            item |= {"call_id": call_id, "name": name, "arguments": ""}
        self.items.append(item)
        self._is_open = True
        yield self._whole("response.output_item.added")
        if kind != "function_call":
            yield {
                **self._at("response.content_part.added", part=0),
                "part": _part(kind, "", ()),
            }

    def _delta(self, kind: str, piece: Piece) -> StreamEvent:
        if kind == "function_call":
            return {**self._at("response.function_call_arguments.delta"), "delta": piece.text}
        if kind == "reasoning":
            return {**self._at("response.reasoning_text.delta", part=0), "delta": piece.text}
        return {
            **self._at("response.output_text.delta", part=0),
            "delta": piece.text,
            "logprobs": list(piece.logprobs),
        }

    def _at(self, name: str, part: int | None = None) -> StreamEvent:
        event: StreamEvent = {
            "type": name,
            "item_id": self.items[-1]["id"],
            "output_index": len(self.items) - 1,
        }
        return event if part is None else {**event, "content_index": part}

    def _whole(self, name: str) -> StreamEvent:
        return {
            "type": name,
            "output_index": len(self.items) - 1,
            "item": dict(self.items[-1]),
        }


def _part(kind: str, text: str, logprobs: Sequence[Fragment]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return output_text(text, logprobs)


def _merged(pieces: Sequence[Piece]) -> Iterator[Piece]:
    for kind, group in itertools.groupby(pieces, key=lambda piece: piece.kind):
        same = list(group)
        if kind in ("call", "end"):
            yield from same
        else:
            text = "".join(piece.text for piece in same)
            yield Piece(kind, text, tuple(entry for piece in same for entry in piece.logprobs))

"""`BlockWriter`: what a parser finds in a reply as the events of content blocks."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from pydantic_core import from_json, to_json

from quire.server.anthropic.replies import (
    BlockDelta,
    BlockEvent,
    BlockStart,
    ContentBlock,
    InputDelta,
    SignatureDelta,
    TextDelta,
    ThinkingDelta,
)
from quire.server.openai.tools.events import Event


class BlockWriter:
    """One block is open at a time. Without `shows_thinking` a block of reasoning has no text."""

    def __init__(self, message_id: str, *, shows_thinking: bool) -> None:
        self._message_id = message_id
        self._shows_thinking = shows_thinking
        self._index = -1
        self._open: str | None = None
        self._digest = hashlib.sha256()

    def feed(self, found: Sequence[Event]) -> list[BlockEvent]:
        """The events that `found` makes."""
        return [told for event in found for told in self._feed(event)]

    def close(self) -> list[BlockEvent]:
        """End the open block, if one is."""
        if self._open is None:
            return []
        told: list[BlockEvent] = []
        if self._open == "reasoning":
            told.append(
                self._delta({"type": "signature_delta", "signature": self._digest.hexdigest()})
            )
            self._digest = hashlib.sha256()
        self._open = None
        return [*told, {"type": "content_block_stop", "index": self._index}]

    def _feed(self, event: Event) -> list[BlockEvent]:
        kind, text = event
        if kind == "end":
            return self.close()
        if kind == "arguments":
            return [self._delta({"type": "input_json_delta", "partial_json": text})]
        told: list[BlockEvent] = []
        if kind == "call":
            told += self.close()
            told.append(self._start(kind, self._call(text)))
        elif kind == "content":
            if self._open != kind:
                told += self.close()
                told.append(self._start(kind, {"type": "text", "text": ""}))
            told.append(self._delta({"type": "text_delta", "text": text}))
        else:
            if self._open != kind:
                told += self.close()
                empty: ContentBlock = {"type": "thinking", "thinking": "", "signature": ""}
                told.append(self._start(kind, empty))
            self._digest.update(text.encode())
            if self._shows_thinking:
                told.append(self._delta({"type": "thinking_delta", "thinking": text}))
        return told

    def _start(self, kind: str, block: ContentBlock) -> BlockStart:
        self._open = kind
        self._index += 1
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta) -> BlockDelta:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _call(self, name: str) -> ContentBlock:
        seed = f"{self._message_id}/{self._index + 1}"
        id = "toolu_" + hashlib.sha256(seed.encode()).hexdigest()[:24]
        return {"type": "tool_use", "id": id, "name": name, "input": {}}


def accumulated(events: Iterable[BlockEvent]) -> list[ContentBlock]:
    """The blocks that a client makes of all `events`."""
    blocks: list[ContentBlock] = []
    pieces: list[str] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
            pieces = []
        elif event["type"] == "content_block_stop":
            _fill(blocks[-1], "".join(pieces))
        elif event["delta"]["type"] == "text_delta":
            pieces.append(event["delta"]["text"])
        elif event["delta"]["type"] == "thinking_delta":
            pieces.append(event["delta"]["thinking"])
        elif event["delta"]["type"] == "input_json_delta":
            pieces.append(event["delta"]["partial_json"])
        elif blocks[-1]["type"] == "thinking":
            blocks[-1]["signature"] = event["delta"]["signature"]
    return blocks


def _fill(block: ContentBlock, text: str) -> None:
    if block["type"] == "text":
        block["text"] = text
    elif block["type"] == "thinking":
        block["thinking"] = text
    else:
        block["input"] = _input(text)


def _input(text: str) -> Any:
    """A call's arguments, which must be an object, as the model spelled them: no number is too large
    for that. Of a call that was cut off, as far as they came."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return _cut_input(text)
    return orjson.Fragment(text) if isinstance(value, dict) else {}


def _cut_input(text: str) -> Any:
    try:
        value = from_json(text, allow_partial=True)
    except ValueError:
        return {}
    return orjson.Fragment(to_json(value, inf_nan_mode="null")) if isinstance(value, dict) else {}


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")

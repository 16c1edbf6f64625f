"""How the deltas of a generation become the choices of OpenAI's completions, for one endpoint.

A stream's events are chunks, each with one choice, and then

    data: {"error"..}  what went wrong after the first chunk
    data: [DONE]       the end, always
"""

import time
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from quire.server.errors import ApiError
from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.replies import Usage
from quire.server.openai.schema import GenerationRequest, StreamOptions
from quire.server.openai.served import ServedModel
from quire.server.openai.sse import event
from quire.server.openai.wire_format import UsageNow, WireFormat, joined

_DONE = b"data: [DONE]\n\n"


class ReplyFormat(WireFormat):
    """Builds one request's reply or its chunks; all of them share id, time, model, fingerprint."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, served: ServedModel, model: str, request: GenerationRequest) -> None:
        self.tokenizer = served.tokenizer
        self.model = model
        self.shows_token_ids = request.return_token_ids
        self.id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._options = request.stream_options or StreamOptions()
        self._head: dict[str, Any] = {
            "id": self.id,
            "object": self.whole_object,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": served.system_fingerprint,
        }

    def whole(self, deltas: Sequence[Sequence[ChoiceDelta]], usage: Usage) -> Mapping[str, Any]:
        choices = [self.whole_choice(joined(pieces)) for pieces in deltas]
        return {**self._head, "choices": choices, "usage": usage}

    def begin(self, num_choices: int, usage: UsageNow) -> bytes:
        openings = (self.opening(index) for index in range(num_choices))
        return self._events([choice for choices in openings for choice in choices], usage)

    def feed(self, delta: ChoiceDelta, usage: UsageNow) -> bytes:
        return self._events(self.pieces(delta), usage)

    def end(self, usage: UsageNow) -> bytes:
        last = event(self.chunk([], usage())) if self._options.include_usage else b""
        return last + _DONE

    def failed(self, error: ApiError) -> bytes:
        return event(error.body) + _DONE

    def chunk(
        self, choices: Sequence[Mapping[str, Any]], usage: Usage | None = None
    ) -> dict[str, Any]:
        """One event of a streamed reply."""
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        if usage is not None:
            chunk["usage"] = usage
        return chunk

    @abstractmethod
    def whole_choice(self, output: ChoiceDelta) -> Mapping[str, Any]:
        """A choice of a whole reply from everything it gained."""

    @abstractmethod
    def opening(self, index: int) -> list[Mapping[str, Any]]:
        """What a choice begins with, before any of its tokens; each item is one chunk's choice."""

    @abstractmethod
    def pieces(self, delta: ChoiceDelta) -> list[Mapping[str, Any]]:
        """What a delta adds to a stream; nothing if it has neither text nor an end."""

    def _events(self, choices: Sequence[Mapping[str, Any]], usage: UsageNow) -> bytes:
        if not choices:
            return b""
        now = usage() if self._options.continuous_usage_stats else None
        return b"".join(event(self.chunk([choice], now)) for choice in choices)

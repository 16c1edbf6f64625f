"""How the deltas of a generation become the choices of a reply, for one endpoint."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.replies import Usage
from quire.server.openai.served import ServedModel


class ReplyFormat(ABC):
    """Builds one request's reply or its chunks; all of them share id, time, model, fingerprint."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    shown_tokens: frozenset[int] = frozenset()
    """Control tokens that this format reads in the text."""

    def __init__(self, served: ServedModel, model: str, *, shows_token_ids: bool = False) -> None:
        self.tokenizer = served.tokenizer
        self.model = model
        self.shows_token_ids = shows_token_ids
        self.id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._head: dict[str, Any] = {
            "id": self.id,
            "object": self.whole_object,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": served.system_fingerprint,
        }

    def whole(self, deltas: Sequence[Sequence[ChoiceDelta]], usage: Usage) -> dict[str, Any]:
        """The reply that is not streamed, from the deltas of each choice."""
        choices = [self.whole_choice(joined(pieces)) for pieces in deltas]
        return {**self._head, "choices": choices, "usage": usage}

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


def joined(deltas: Sequence[ChoiceDelta]) -> ChoiceDelta:
    """The deltas of one choice as one."""
    return ChoiceDelta(
        deltas[-1].index,
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.tokens],
        [logprob for delta in deltas for logprob in delta.logprobs],
        [offset for delta in deltas for offset in delta.offsets],
        deltas[-1].finish_reason,
        deltas[-1].stop_reason,
        deltas[0].prompt_logprobs,
    )

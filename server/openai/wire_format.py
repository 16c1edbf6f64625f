"""What an endpoint's replies look like: whole, and as the bytes of an event stream."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire.pipelines.tokenizer import TextTokenizer
from quire.server.errors import ApiError
from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.replies import Usage
from quire.server.openai.tools.reasoning_meter import ReasoningMeter

UsageNow = Callable[[], Usage]
"""The tokens so far, for those who want to know."""


class WireFormat(ABC):
    """Builds one request's reply. A stream is `begin`, a `feed` per delta, and `end` or `failed`;
    each gives the events that it adds, or none."""

    model: str
    """The name that the client is told."""
    tokenizer: TextTokenizer
    shown_tokens: frozenset[int] = frozenset()
    """Control tokens that this format reads in the text."""
    new_meter: Callable[[], ReasoningMeter] | None = None
    """Makes what counts the tokens of reasoning of a choice."""
    ping: bytes = b": ping\n\n"
    """What is sent when nothing happened for a while; clients skip it."""

    @abstractmethod
    def whole(
        self, deltas: Sequence[Sequence[ChoiceDelta]], usage: Usage
    ) -> Mapping[str, Any] | Sequence[Any]:
        """The reply that is not streamed, from the deltas of each choice."""

    @abstractmethod
    def begin(self, num_choices: int, usage: UsageNow) -> bytes:
        """The stream's events before any token."""

    @abstractmethod
    def feed(self, delta: ChoiceDelta, usage: UsageNow) -> bytes:
        """What a delta adds to the stream."""

    @abstractmethod
    def end(self, usage: UsageNow) -> bytes:
        """The stream's last events, when every choice is complete."""

    @abstractmethod
    def failed(self, error: ApiError) -> bytes:
        """The stream's last events, when it broke off."""


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
        deltas[0].cached_tokens,
    )

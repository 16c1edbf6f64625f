"""The engine as the HTTP layer sees it: submit contexts, read token streams."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.core.status import TextGenerationStatus


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """The committed tokens since the last chunk: at least one, or a final status alone."""

    tokens: list[int]
    logprobs: list[LogProbabilities]
    """Aligned with `tokens` when the request asked for them, else empty."""
    status: TextGenerationStatus


@dataclass(slots=True)
class StreamTimes:
    """Monotonic seconds of a stream's life; None until they happen."""

    arrival: float
    queue_seconds: float | None = None
    """From the worker's receipt to its first schedule."""
    first_token: float | None = None
    last_token: float | None = None


class TokenStream(Protocol):
    """One context's output. Iterating ends after the chunk whose status is done."""

    context: TextContext
    times: StreamTimes
    cached_tokens: int
    """Prompt tokens served from the prefix cache; valid from the first chunk on."""
    prompt_logprobs: list[LogProbabilities]
    """Of the prompt's tokens after the first, when asked; whole from the first chunk on."""

    def __aiter__(self) -> AsyncIterator[TokenChunk]:
        """Raises GenerationFailed or EngineUnavailable when the context cannot be finished."""

    def close(self, *, stopped: bool = False) -> None:
        """Stop generating if it has not ended; safe to call at any time, more than once.

        `stopped`: the text reached a stop string, so this is a good end and no abort.
        """


class Engine(Protocol):
    """Where contexts are run."""

    max_length: int
    """Prompt plus output tokens of one request."""

    def check_available(self) -> None:
        """Raises EngineUnavailable when nothing can be admitted: loading, or draining."""

    def new_request_id(self) -> int:
        """A number no other context of this process has."""

    def submit(self, contexts: Sequence[TextContext]) -> list[TokenStream]:
        """Admit all of them or none.

        Raises:
            InvalidRequest: they are more than the queue can ever hold.
            Overloaded: the queue has no room for all of them.
            EngineUnavailable: the model is not loaded yet, or draining, or given up.
        """

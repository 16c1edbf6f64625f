"""The engine as the HTTP layer sees it: submit contexts, read token streams."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from typing_extensions import TypedDict

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


class ChoiceTimeline(TypedDict):
    """One context. Times are seconds after the request's arrival, None until they happen."""

    index: int
    state: str
    """queued, running, or how it ended: stop, length, abort, error."""
    error: str | None
    """The code of what ended it."""
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    max_tokens: int | None
    submitted_after: float
    scheduled_after: float | None
    """First schedule; known with the first token."""
    first_token_after: float | None
    last_token_after: float | None
    ended_after: float | None
    preemptions: int
    resumes: int
    """Worker deaths it survived."""
    worker_epoch: int
    """Of the worker that ran it last; 0 before there was one."""


class RequestTrace(Protocol):
    """What wants to know of a request's contexts."""

    def on_admission(self, contexts: Sequence[TextContext]) -> None:
        """Some or all of its contexts were admitted."""

    def on_choice_end(self, context: TextContext, line: ChoiceTimeline) -> None:
        """One of them ended; this may be after the reply."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who shows a known API key. Keys of one name are one caller, so that a key can be rotated."""

    identity: str
    """The name, or for a key without one its digest."""
    name: str | None
    is_background: bool = False
    """Whether it is nobody who waits for the reply, but a batch: it takes only places that live
    requests leave, and counts apart from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The HTTP request that contexts come from."""

    request_id: str = ""
    """As the client sees it; nothing keeps two requests from having the same."""
    caller: Caller | None = None
    arrival: float = field(default_factory=time.monotonic)
    """Monotonic seconds."""
    timeout: float | None = None
    """Seconds from its arrival in which it must be answered; then its contexts are aborted."""
    trace: RequestTrace | None = None

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline, 0 when it has passed; None without one."""
        if self.timeout is None:
            return None
        return max(0.0, self.arrival + self.timeout - time.monotonic())


class TokenStream(Protocol):
    """One context's output. Iterating ends after the chunk whose status is done."""

    context: TextContext
    times: StreamTimes
    cached_tokens: int
    """Prompt tokens served from the prefix cache; valid from the first chunk on."""
    prompt_logprobs: list[LogProbabilities]
    """Of the prompt's tokens after the first, when asked; whole from the first chunk on."""
    embedding: bytes
    """fp32 [C] of a context with `pooling`, which has no chunks; there when iterating ends."""

    def __aiter__(self) -> AsyncIterator[TokenChunk]:
        """Raises GenerationFailed, EngineUnavailable or DeadlineExceeded when the context cannot
        be finished."""

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

    def check_room(self, caller: Caller | None) -> None:
        """Refuse early what `submit` would refuse: before a body is parsed and tokenized.

        Raises:
            Overloaded: the queue is full, or the caller has as many requests as it may.
            EngineUnavailable: as `check_available`.
        """

    def has_room(self, count: int, caller: Caller | None) -> bool:
        """Whether `submit` would admit `count` contexts now.

        Raises:
            EngineUnavailable: as `check_available`.
        """

    def new_request_id(self) -> int:
        """A number no other context of this process has."""

    def submit(self, contexts: Sequence[TextContext], origin: Origin) -> list[TokenStream]:
        """Admit all of them or none.

        Raises:
            InvalidRequest: they are more than the queue can ever hold, or a caller ever have.
            Overloaded: the queue has no room for all of them, or the caller no more requests.
            DeadlineExceeded: they come too late.
            EngineUnavailable: the model is not loaded yet, or draining, or given up.
        """

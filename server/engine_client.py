"""`EngineClient`: admits contexts, keeps every live stream, and carries them across worker deaths.

The worker may die at any moment. What survives is here: prompt, committed tokens, parameters with
the seed fixed at admission. A new worker gets every live context as history under a new epoch and
recomputes exactly what the old one would have sent next.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from quire.config.limits import LIMITS
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.messages import (
    Abort,
    PrepareGrammars,
    Ready,
    ResetPrefixCache,
    StepOutput,
    Submit,
    ToWorker,
)
from quire.pipelines.core.plan import CONSTRAINT_ERRORS, CORRUPTION_ERRORS
from quire.pipelines.core.status import TextGenerationStatus
from quire.server.capacity import Capacity
from quire.server.engine import Caller, Origin, TokenStream
from quire.server.errors import (
    ApiError,
    DeadlineExceeded,
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
)
from quire.server.lifecycle import Lifecycle
from quire.server.live_stream import LiveStream, Siblings
from quire.server.metrics import Metrics
from quire.server.request_metrics import FinishReason, RequestTimes
from quire.server.timelines import Timelines

logger = logging.getLogger(__name__)

MAX_RESUMES = 3
"""A context alive in more worker deaths than this is suspected of causing them and is failed."""


MAX_SUBMITTED_GRAMMAR_BYTES = 2 * LIMITS.compiled_grammar_bytes
"""In one message, unless a single grammar is larger; well below what a message may hold."""


class ProtocolError(Exception):
    """The worker sent what its contract forbids; it is replaced."""


class EngineClient:
    """The engine as the HTTP layer uses it (`server.engine.Engine`).

    `capacity` is how many contexts may be live at once, running and queued together, and
    `per_caller` how many of one API key; `background`: see `Capacity`.
    """

    def __init__(
        self,
        capacity: int,
        lifecycle: Lifecycle,
        metrics: Metrics,
        *,
        per_caller: int | None = None,
        background: int | None = None,
    ) -> None:
        self.max_length = 0
        self.timelines = Timelines()
        self._capacity = Capacity(capacity, per_caller, metrics, background=background)
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._ids = itertools.count(1)
        self._live: dict[int, LiveStream] = {}
        metrics.watch_contexts(lambda: len(self._live))
        self._send: Callable[[ToWorker], None] | None = None
        self._epoch = 0
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self.last_progress = time.monotonic()
        """When the worker last showed progress, or got its first work."""

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def is_busy(self) -> bool:
        """Whether a ready worker owes progress."""
        return self.has_worker and bool(self._live)

    @property
    def has_worker(self) -> bool:
        return self._send is not None

    def new_request_id(self) -> int:
        return next(self._ids)

    def check_available(self) -> None:
        if self._draining:
            raise EngineUnavailable("The server is shutting down", 5.0)
        if self.max_length == 0:
            raise EngineUnavailable(f"The model is not ready: {self._lifecycle.phase}", 1.0)

    def check_room(self, caller: Caller | None) -> None:
        self.check_available()
        self._capacity.check(1, caller)

    def has_room(self, count: int, caller: Caller | None) -> bool:
        self.check_available()
        return self._capacity.has_room(count, caller)

    def submit(self, contexts: Sequence[TextContext], origin: Origin) -> list[TokenStream]:
        self.check_available()
        seconds_left = origin.seconds_left
        if origin.timeout is not None and not seconds_left:
            self._metrics.on_deadline()
            raise DeadlineExceeded(origin.timeout)
        self._capacity.check(len(contexts), origin.caller)
        if not self._live:
            self.last_progress = time.monotonic()
        streams = self._streams(contexts, origin.caller)
        for stream in streams:
            self._live[stream.context.request_id] = stream
            if origin.timeout is not None and seconds_left is not None:
                stream.deadline = asyncio.get_running_loop().call_later(
                    seconds_left, self._expire, stream, origin.timeout
                )
        self._capacity.add(len(streams), origin.caller)
        self.timelines.open(origin, streams, self._epoch)
        self._empty.clear()
        if self._send is not None:
            self._send(_submission(self._epoch, contexts))
        return list(streams)

    def reset_prefix_cache(self) -> None:
        """Make the worker forget every cached page that no live context holds."""
        if self._send is not None:
            self._send(ResetPrefixCache(self._epoch))

    def prepare_grammars(self) -> None:
        """A grammar is being compiled; the worker should be ready for it."""
        if self._send is not None:
            self._send(PrepareGrammars(self._epoch))

    # What the supervisor tells.

    def attach(self, ready: Ready, send: Callable[[ToWorker], None]) -> None:
        """A worker is ready: hand it every live context, oldest first, committed tokens included."""
        self._epoch = ready.epoch
        self._send = send
        self.max_length = ready.max_length
        self.last_progress = time.monotonic()
        self._metrics.on_ready(ready)
        self.timelines.on_epoch(ready.epoch)
        waiting = sorted(self._live.values(), key=lambda stream: stream.context.request_id)
        for contexts in _parts([stream.context for stream in waiting]):
            send(_submission(ready.epoch, contexts))

    def detach(self) -> None:
        """The worker is gone: its unsent tokens never existed; live contexts wait for the next."""
        if self._send is None:
            return
        self._send = None
        self._capacity.num_running = 0
        for stream in list(self._live.values()):
            stream.resumes += 1
            if stream.resumes > MAX_RESUMES:
                self._end(stream, GenerationFailed("The engine failed repeatedly on this request"))
        self._metrics.on_resumed(len(self._live))

    def receive(self, output: StepOutput) -> None:
        """Commit one step's tokens and vectors.

        Raises:
            ProtocolError: a gap or a repeat in a stream, a token outside int32's positive half, or
                a vector where a token belongs.
        """
        if output.epoch != self._epoch:
            self._metrics.on_stale_frame()
            return
        now = time.monotonic()
        self.last_progress = now
        self._metrics.on_step(output)
        self._capacity.num_running = output.stats.running
        for request_id in output.preempted:
            if (preempted := self._live.get(request_id)) is not None:
                preempted.preemptions += 1
        self._add_prompts(output)
        ids = _ints(output, "request_ids")
        bases, tokens = _ints(output, "base_index"), _ints(output, "tokens")
        statuses, cached = _ints(output, "statuses"), _ints(output, "cached_tokens")
        queued = output.array("queue_seconds").tolist()
        for row, request_id in enumerate(ids):
            stream = self._live.get(request_id)
            if stream is None:
                continue
            if stream.times.first_token is None and stream.times.queue_seconds is None:
                stream.times.queue_seconds = queued[row]
                stream.cached_tokens = cached[row]
            status = TextGenerationStatus(statuses[row])
            if status is TextGenerationStatus.FAILED:
                if output.errors[row] in CORRUPTION_ERRORS:
                    self._metrics.requests.on_corrupted()
                self._end(stream, _row_error(output.errors[row]))
                continue
            if stream.context.pooling is not None:
                self._commit_embedding(stream, output.embeddings.get(row), status, now)
                continue
            if bases[row] != stream.num_committed or tokens[row] < 0:
                raise ProtocolError(
                    f"request {request_id}: token {tokens[row]} for index {bases[row]}, "
                    f"{stream.num_committed} tokens committed"
                )
            stream.commit(tokens[row], status, output.logprobs.get(row))
            self._observe_token(stream, now)
            if status.is_done:
                self._end(stream, None)

    def _commit_embedding(
        self, stream: LiveStream, vector: bytes | None, status: TextGenerationStatus, now: float
    ) -> None:
        if not vector or not status.is_done:
            raise ProtocolError(f"request {stream.context.request_id}: ended without its embedding")
        stream.commit_embedding(vector, status)
        stream.times.first_token = stream.times.last_token = now
        self._observe_prompt(stream)
        self._end(stream, None)

    def _add_prompts(self, output: StepOutput) -> None:
        for prompt in output.prompt_logprobs:
            stream = self._live.get(prompt.request_id)
            if stream is None:
                continue
            try:
                stream.add_prompt(prompt.start, prompt.entries)
            except ValueError as error:
                raise ProtocolError(f"request {prompt.request_id}: {error}") from None

    def begin_drain(self) -> None:
        """Refuse new requests; the live ones go on."""
        self._draining = True

    async def wait_until_empty(self, timeout: float) -> None:
        """Until no stream is live, or `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout)

    def fail_all(self, error: ApiError) -> None:
        """End every live stream with `error`."""
        for stream in list(self._live.values()):
            self._abort_in_worker(stream)
            self._end(stream, error)

    # Inner workings.

    def _streams(self, contexts: Sequence[TextContext], caller: Caller | None) -> list[LiveStream]:
        """One per context; the choices of a prompt stand in a row, from number 0 on."""
        firsts = [at for at, context in enumerate(contexts) if not at or context.choice == 0]
        streams = []
        for first, end in itertools.pairwise((*firsts, len(contexts))):
            siblings = Siblings(end - first)
            streams += [
                LiveStream(context, self._abandon, caller, siblings)
                for context in contexts[first:end]
            ]
        return streams

    def _observe_prompt(self, stream: LiveStream) -> None:
        self._metrics.requests.on_prompt(stream.context.tokens.prompt_length, stream.cached_tokens)

    def _observe_token(self, stream: LiveStream, now: float) -> None:
        times = stream.times
        if times.first_token is None:
            times.first_token = now
            self._observe_prompt(stream)
            self._metrics.requests.on_first_token(now - times.arrival)
        elif times.last_token is not None:
            self._metrics.requests.on_inter_token(now - times.last_token)
        times.last_token = now

    def _abandon(self, stream: LiveStream) -> None:
        """The reader left, or has what it wanted (a stop string)."""
        self._abort_in_worker(stream)
        self._end(stream, EngineUnavailable("The stream was closed", 1.0))

    def _expire(self, stream: LiveStream, seconds: float) -> None:
        """The time that the request allowed is over, wherever its context is."""
        self._metrics.on_deadline()
        self._abort_in_worker(stream)
        self._end(stream, DeadlineExceeded(seconds))

    def _abort_in_worker(self, stream: LiveStream) -> None:
        if self._send is not None:
            self._send(Abort(self._epoch, [stream.context.request_id]))

    def _end(self, stream: LiveStream, error: ApiError | None) -> None:
        if self._live.pop(stream.context.request_id, None) is None:
            return
        if not self._live:
            self._empty.set()
        if stream.deadline is not None:
            stream.deadline.cancel()
            stream.deadline = None
        self._capacity.remove(stream.caller)
        now = time.monotonic()
        tokens, times = stream.context.tokens, stream.times
        self._metrics.requests.on_request_end(
            RequestTimes(
                arrival=times.arrival,
                queue_seconds=times.queue_seconds,
                first_token_at=times.first_token,
                last_token_at=times.last_token,
                ended_at=now,
                prompt_tokens=tokens.prompt_length,
                cached_tokens=stream.cached_tokens,
                generation_tokens=tokens.generated_length,
                finish_reason=(reason := _finish_reason(stream, error)),
                max_tokens=stream.context.params.max_new_tokens,
                preemptions=stream.preemptions,
            )
        )
        if stream.siblings.on_end(tokens.generated_length):
            self._metrics.requests.on_choices_end(stream.siblings.count, stream.siblings.longest)
        self.timelines.on_end(stream, now, reason, error)
        if error is not None:
            stream.fail(error)


def _parts(contexts: Sequence[TextContext]) -> Iterator[list[TextContext]]:
    """`contexts` in order, in parts whose grammars fit one message."""
    part: list[TextContext] = []
    digests: set[str] = set()
    room = MAX_SUBMITTED_GRAMMAR_BYTES
    for context in contexts:
        grammar = context.grammar
        if grammar is not None and grammar.digest not in digests:
            if part and len(grammar.data) > room:
                yield part
                part, digests, room = [], set(), MAX_SUBMITTED_GRAMMAR_BYTES
            digests.add(grammar.digest)
            room -= len(grammar.data)
        part.append(context)
    if part:
        yield part


def _submission(epoch: int, contexts: Sequence[TextContext]) -> Submit:
    grammars = {c.grammar.digest: c.grammar for c in contexts if c.grammar is not None}
    return Submit(epoch, [context.to_wire() for context in contexts], list(grammars.values()))


def _row_error(reason: str) -> ApiError:
    if reason in CONSTRAINT_ERRORS:
        return InvalidRequest(f"The request cannot be met: {reason}", code="constraints_conflict")
    return GenerationFailed(reason)


def _finish_reason(stream: LiveStream, error: ApiError | None) -> FinishReason:
    if stream.was_stopped:
        return "stop"
    if stream.was_closed or isinstance(error, DeadlineExceeded):
        return "abort"
    if error is not None:
        return "error"
    return "length" if stream.context.status is TextGenerationStatus.MAXIMUM_LENGTH else "stop"


def _ints(output: StepOutput, name: str) -> list[int]:
    values: list[int] = output.array(name).tolist()
    return values

"""The engine of models that read a text at once: whole texts in a step, no pages, no tokens.

The same interface and the same frames as `Engine`, so the worker process drives either.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.messages import EngineStats, StepOutput
from quire.pipelines.core.plan import INVALID_STATES
from quire.pipelines.scheduler.queue import AGING_SECONDS_PER_LEVEL
from quire.pipelines.scheduler.step_rows import StepRows
from quire.pipelines.text_encoder import StateSource
from quire.pipelines.worker.engine import step_output
from quire.pipelines.worker.pooling import pool_text


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A context and its place in line; see `ScheduledContext.order`."""

    context: TextContext
    received: float
    order: tuple[float, int]


class EncoderEngine:
    """A queue and the encoder it feeds, under one epoch.

    A step takes waiting texts in order: up to `max_batch_size`, as many as fit
    `max_batch_input_tokens` together, or one that is longer alone. `clock` as of `Engine`.
    """

    def __init__(
        self,
        model: StateSource,
        *,
        max_batch_size: int,
        max_batch_input_tokens: int,
        epoch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epoch = epoch
        self._model = model
        self._max_batch_size = max_batch_size
        self._budget = max_batch_input_tokens
        self._clock = clock
        self._waiting: dict[int, _Waiting] = {}
        self._rejected: list[tuple[TextContext, str]] = []
        self._arrivals = 0
        self._tokens = 0
        self._steps = 0
        self._step_seconds = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._rejected)

    def submit(self, contexts: Iterable[TextContext]) -> None:
        """Queue contexts; one that can never run becomes a FAILED row of the next frame."""
        now = self._clock()
        for context in contexts:
            if context.pooling is None:
                self.reject(context, "the model makes embeddings and generates no text")
            elif context.tokens.prompt_length > self._model.max_length:
                self.reject(context, f"the model takes {self._model.max_length} tokens")
            elif context.request_id not in self._waiting:
                order = now + context.priority * AGING_SECONDS_PER_LEVEL, self._arrivals
                self._waiting[context.request_id] = _Waiting(context, now, order)
                self._arrivals += 1

    def reject(self, context: TextContext, reason: str) -> None:
        """As `Engine.reject`."""
        self._rejected.append((context, reason))

    def abort(self, request_ids: Iterable[int]) -> None:
        """As `Engine.abort`."""
        dropped = set(request_ids)
        self._rejected = [item for item in self._rejected if item[0].request_id not in dropped]
        for request_id in dropped:
            self._waiting.pop(request_id, None)

    def reset_prefix_cache(self) -> None:
        """There is none."""

    def step(self) -> StepOutput | None:
        """Run one batch; None when there is nothing to run or to report."""
        start = self._clock()
        rows, batch = StepRows(), self._take_batch()
        for context, reason in self._rejected:
            rows.append_failed(context, reason, queue_seconds=0.0)
        self._rejected = []
        texts = [entry.context.tokens.prompt.tolist() for entry in batch]
        if batch:
            for entry, states in zip(batch, self._model.states(texts), strict=True):
                context, queued = entry.context, start - entry.received
                assert context.pooling is not None
                if vector := pool_text(states.cpu().numpy(), context.pooling):
                    rows.append_pooled(context, vector, queued)
                else:
                    rows.append_failed(context, INVALID_STATES, queued)
            self._steps += 1
            self._step_seconds += self._clock() - start
        num_tokens = sum(map(len, texts))
        self._tokens += num_tokens
        return self._frame(rows, num_tokens) if rows.request_ids else None

    def stats_frame(self) -> StepOutput:
        """As `Engine.stats_frame`."""
        return self._frame(StepRows(), 0)

    def _take_batch(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        tokens = 0
        for entry in sorted(self._waiting.values(), key=lambda entry: entry.order):
            tokens += entry.context.tokens.prompt_length
            if taken and (tokens > self._budget or len(taken) == self._max_batch_size):
                break
            taken.append(entry)
        for entry in taken:
            del self._waiting[entry.context.request_id]
        return taken

    def _frame(self, rows: StepRows, input_tokens: int) -> StepOutput:
        stats = EngineStats(
            waiting=len(self._waiting),
            prefill_tokens=self._tokens,
            steps=self._steps,
            step_seconds=self._step_seconds,
        )
        return step_output(self.epoch, rows, input_tokens, stats)

"""The worker's engine: schedule, run, apply, and one frame that says what the step did.

It holds no socket and no thread, so a simulation runs the very same code.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.messages import EngineStats, StepOutput
from quire.pipelines.core.plan import ModelRunner
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.scheduler.scheduler import Scheduler
from quire.pipelines.scheduler.step_rows import StepRows


class WorkerEngine(Protocol):
    """What the worker process drives; see `Engine`."""

    @property
    def has_work(self) -> bool: ...

    def submit(self, contexts: Iterable[TextContext]) -> None: ...

    def reject(self, context: TextContext, reason: str) -> None: ...

    def abort(self, request_ids: Iterable[int]) -> None: ...

    def reset_prefix_cache(self) -> None: ...

    def step(self) -> StepOutput | None: ...

    def stats_frame(self) -> StepOutput: ...


class Engine:
    """A scheduler and the runner it feeds, under one epoch.

    `clock` tells seconds since any moment; all times of the engine are its readings.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: SchedulerConfig,
        epoch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epoch = epoch
        self.scheduler = Scheduler(config)
        self._runner = runner
        self._clock = clock
        self._rejected: list[tuple[TextContext, str]] = []
        self._step_seconds = 0.0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._rejected)

    def submit(self, contexts: Iterable[TextContext]) -> None:
        """Queue contexts; one that can never run becomes a FAILED row of the next frame."""
        now = self._clock()
        for context in contexts:
            try:
                self.scheduler.submit(context, now)
            except ValueError as error:
                self._rejected.append((context, str(error)))

    def reject(self, context: TextContext, reason: str) -> None:
        """Answer a context with a FAILED row of the next frame."""
        self._rejected.append((context, reason))

    def abort(self, request_ids: Iterable[int]) -> None:
        """Forget contexts at any stage; no later frame has a row of theirs. Idempotent."""
        dropped = list(request_ids)
        self._rejected = [item for item in self._rejected if item[0].request_id not in dropped]
        self.scheduler.abort(dropped)

    def reset_prefix_cache(self) -> None:
        self.scheduler.reset_prefix_cache()

    def step(self) -> StepOutput | None:
        """Run one step; None when there is nothing to run or to report.

        Whatever the runner raises comes through: then the worker's memory is not to be trusted.
        """
        start = self._clock()
        plan = self.scheduler.plan(start)
        if plan is None:
            return self._frame(StepRows(), 0) if self._rejected else None
        if pages := self.scheduler.take_pages_to_scrub():
            self._runner.scrub(pages)
        result = self._runner.execute(plan)
        rows = self.scheduler.apply(plan, result)
        seconds = self._clock() - start
        self.scheduler.observe(plan, seconds)
        self._step_seconds += seconds
        return self._frame(rows, plan.num_tokens)

    def stats_frame(self) -> StepOutput:
        """The gauges as of now, without a row: sent when aborts left nothing to run."""
        return self._build(StepRows(), 0)

    def _frame(self, rows: StepRows, input_tokens: int) -> StepOutput:
        for context, reason in self._rejected:
            rows.append_failed(context, reason, queue_seconds=0.0)
        self._rejected = []
        return self._build(rows, input_tokens)

    def _build(self, rows: StepRows, input_tokens: int) -> StepOutput:
        stats = msgspec.structs.replace(self.scheduler.stats(), step_seconds=self._step_seconds)
        preempted = self.scheduler.take_preempted()
        return step_output(self.epoch, rows, input_tokens, stats, preempted)


def step_output(
    epoch: int,
    rows: StepRows,
    input_tokens: int,
    stats: EngineStats,
    preempted: Sequence[int] = (),
) -> StepOutput:
    """The frame that says what a step did."""
    return StepOutput(
        epoch=epoch,
        request_ids=np.array(rows.request_ids, dtype="<i8").tobytes(),
        base_index=np.array(rows.base_index, dtype="<i4").tobytes(),
        tokens=np.array(rows.tokens, dtype="<i4").tobytes(),
        statuses=np.array(rows.statuses, dtype="u1").tobytes(),
        cached_tokens=np.array(rows.cached_tokens, dtype="<i4").tobytes(),
        queue_seconds=np.array(rows.queue_seconds, dtype="<f4").tobytes(),
        logprobs=rows.logprobs,
        errors=rows.errors,
        input_tokens=input_tokens,
        stats=stats,
        prompt_logprobs=rows.prompt_logprobs,
        preempted=list(preempted),
        embeddings=rows.embeddings,
    )

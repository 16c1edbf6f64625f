from collections.abc import Sequence

import numpy as np
import pytest

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.core.messages import StepOutput
from quire.pipelines.core.plan import StepPlan, StepResult
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus as Status
from quire.pipelines.kv_cache.page_group import PageGroup
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.worker.engine import Engine

LOGPROBS = LogProbabilities(-0.5, {7: -0.5})


class Runner:
    """Takes a quarter of a second and answers 7; the requests in `failing` fail."""

    def __init__(self) -> None:
        self.now = 10.0
        self.failing: set[int] = set()
        self.calls: list[str] = []

    def execute(self, plan: StepPlan) -> StepResult:
        self.calls.append("execute")
        self.now += 0.25
        sampling = [row.context.request_id for row in plan.rows if row.samples]
        errors = {i: "NaN" for i, number in enumerate(sampling) if number in self.failing}
        tokens = [-1 if index in errors else 7 for index in range(len(sampling))]
        logprobs = [None if index in errors else LOGPROBS for index in range(len(sampling))]
        return StepResult(np.array(tokens, dtype=np.int32), logprobs, errors)

    def scrub(self, pages: Sequence[Sequence[int]]) -> None:
        self.calls.append(f"scrub {sum(map(len, pages))}")


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def engine(runner: Runner) -> Engine:
    config = SchedulerConfig(
        page_groups=(PageGroup(8),),
        page_size=4,
        max_batch_size=4,
        max_batch_input_tokens=8,
        max_length=32,
    )
    return Engine(runner, config, epoch=3, clock=lambda: runner.now)


def context(number: int, prompt: int = 3, new: int = 2, generated: int = 0) -> TextContext:
    tokens = np.arange(prompt, dtype=np.int32)
    done = np.full(generated, 7, dtype=np.int32)
    params = SamplingParams(max_new_tokens=new)
    return TextContext(number, tokens, params, max_length=32, generated=done)


def step(engine: Engine) -> StepOutput:
    frame = engine.step()
    assert frame is not None
    return frame


def rows(frame: StepOutput) -> list[tuple[int, int, int, int]]:
    """(request, base index, token, status) of each row."""
    names = ("request_ids", "base_index", "tokens", "statuses")
    return list(zip(*(frame.array(name).tolist() for name in names), strict=True))


def test_an_idle_engine_does_nothing(engine: Engine, runner: Runner) -> None:
    assert not engine.has_work
    assert engine.step() is None
    assert runner.calls == []


def test_a_context_runs_to_its_end(engine: Engine) -> None:
    engine.submit([context(2**40)])
    first, second = step(engine), step(engine)
    assert rows(first) == [(2**40, 0, 7, Status.ACTIVE)]
    assert rows(second) == [(2**40, 1, 7, Status.MAXIMUM_LENGTH)]
    assert (first.epoch, first.input_tokens, second.input_tokens) == (3, 3, 1)
    assert first.logprobs == {0: LOGPROBS}
    assert second.stats.step_seconds == 0.5
    assert not engine.has_work


def test_a_step_that_samples_nothing_still_sends_a_frame(engine: Engine) -> None:
    engine.submit([context(1, prompt=10)])
    frame = step(engine)
    assert rows(frame) == []
    assert (frame.input_tokens, frame.stats.running) == (8, 1)


def test_a_resumed_context_goes_on_at_its_base_index(engine: Engine) -> None:
    engine.submit([context(1, new=3, generated=1)])
    assert rows(step(engine)) == [(1, 1, 7, Status.ACTIVE)]


def test_cached_tokens_and_queue_time_come_with_each_row(engine: Engine, runner: Runner) -> None:
    engine.submit([context(1, prompt=6)])
    step(engine)
    engine.submit([context(2, prompt=6)])
    runner.now += 1.5
    frame = step(engine)
    assert frame.array("cached_tokens").tolist() == [0, 4]
    assert frame.array("queue_seconds").tolist() == [0.0, 1.5]


def test_what_can_never_run_fails_in_the_next_frame(engine: Engine, runner: Runner) -> None:
    engine.submit([context(1, new=2, generated=2), context(2)])
    assert rows(step(engine)) == [(2, 0, 7, Status.ACTIVE), (1, 2, -1, Status.FAILED)]
    assert runner.calls == ["execute"]


def test_a_refusal_alone_is_a_frame_without_a_step(engine: Engine, runner: Runner) -> None:
    engine.submit([context(3, new=2, generated=2)])
    assert engine.has_work
    frame = step(engine)
    assert rows(frame) == [(3, 2, -1, Status.FAILED)]
    assert frame.errors == {0: "the request has all its tokens already"}
    assert (frame.input_tokens, frame.stats.steps, runner.calls) == (0, 0, [])
    assert engine.step() is None


def test_a_failed_row_is_scrubbed_before_the_next_step(engine: Engine, runner: Runner) -> None:
    runner.failing = {1}
    engine.submit([context(1, prompt=5), context(2)])
    frame = step(engine)
    assert rows(frame) == [(1, 0, -1, Status.FAILED), (2, 0, 7, Status.ACTIVE)]
    assert frame.errors == {0: "NaN"}
    step(engine)
    assert runner.calls == ["execute", "scrub 2", "execute"]


def test_an_aborted_context_has_no_rows(engine: Engine) -> None:
    engine.submit([context(1), context(2), context(3, new=2, generated=2)])
    step_before = step(engine)
    assert 1 in step_before.array("request_ids").tolist()
    engine.submit([context(4, new=2, generated=2)])
    engine.abort([1, 4, 4, 77])
    assert rows(step(engine)) == [(2, 1, 7, Status.MAXIMUM_LENGTH)]


def test_the_gauges_reach_zero_after_an_abort(engine: Engine) -> None:
    engine.submit([context(1), context(2)])
    assert step(engine).stats.used_pages == 2
    engine.abort([1, 2])
    assert not engine.has_work
    frame = engine.stats_frame()
    assert rows(frame) == []
    assert frame.input_tokens == 0
    stats = frame.stats
    assert (stats.running, stats.waiting, stats.used_pages) == (0, 0, 0)
    assert (stats.steps, stats.step_seconds) == (1, 0.25)


def test_a_reset_prefix_cache_gives_no_hits(engine: Engine) -> None:
    engine.submit([context(1, prompt=6)])
    step(engine)
    engine.reset_prefix_cache()
    engine.submit([context(2, prompt=6)])
    assert step(engine).array("cached_tokens").tolist() == [0, 0]


def test_an_exception_of_the_runner_comes_through(
    engine: Engine, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(plan: StepPlan) -> StepResult:
        raise RuntimeError("device lost")

    monkeypatch.setattr(runner, "execute", broken)
    engine.submit([context(1)])
    with pytest.raises(RuntimeError, match="device lost"):
        engine.step()


def test_a_frame_names_the_contexts_that_were_put_back(engine: Engine) -> None:
    engine.submit([context(1, new=25), context(2, prompt=5, new=25)])

    frames = []
    while engine.has_work:
        frame = engine.step()
        assert frame is not None
        frames.append(frame)

    assert [frame.preempted for frame in frames if frame.preempted] == [[2]]
    assert frames[-1].stats.preemptions == 1

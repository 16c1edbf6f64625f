"""A long prompt among decoding requests: nobody waits longer than was promised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import StepPlan, StepResult
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.kv_cache.page_group import PageGroup
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.scheduler.prefill_budget import PrefillBudget
from quire.pipelines.scheduler.scheduler import Scheduler

PAGE = 16
MAX_LENGTH = 4096


def seconds_of(plan: StepPlan, per_step: float, per_token: float) -> float:
    return per_step + per_token * sum(row.count for row in plan.rows if row.count > 1)


def scheduler_with(target: float | None, stretch: float = 0.0) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            page_groups=(PageGroup(2000),),
            page_size=PAGE,
            max_batch_size=16,
            max_batch_input_tokens=2048,
            max_length=MAX_LENGTH,
            itl_target=target,
            itl_stretch=stretch,
        )
    )


def context(number: int, prompt: int, new: int) -> TextContext:
    ids = np.arange(number, number + prompt, dtype=np.int32)
    return TextContext(
        number, ids, SamplingParams(max_new_tokens=new, ignore_eos=True), max_length=MAX_LENGTH
    )


def run(scheduler: Scheduler, per_step: float, per_token: float) -> list[tuple[int, int, float]]:
    """(decodes, prompt tokens, seconds) of each step until nothing is left."""
    told = []
    while (plan := scheduler.plan(0.0)) is not None:
        seconds = seconds_of(plan, per_step, per_token)
        sampled = sum(row.samples for row in plan.rows)
        scheduler.apply(plan, StepResult(np.full(sampled, 7, dtype=np.int32)))
        scheduler.observe(plan, seconds)
        prefills = [row.count for row in plan.rows if row.count > 1]
        told.append((len(plan.rows) - len(prefills), sum(prefills), seconds))
        scheduler.check_integrity()
    return told


def test_without_a_target_a_prompt_runs_in_as_large_chunks_as_fit() -> None:
    scheduler = scheduler_with(None)
    scheduler.submit(context(1, 8, 40), 0.0)
    run_once = scheduler.plan(0.0)
    assert run_once is not None
    scheduler.apply(run_once, StepResult(np.full(1, 7, dtype=np.int32)))
    scheduler.submit(context(2, 3000, 2), 0.0)

    plan = scheduler.plan(0.0)

    assert plan is not None
    assert sum(row.count for row in plan.rows) > 2048 - PAGE


@settings(deadline=None, max_examples=40)
@given(
    per_step=st.floats(0.005, 0.08),
    per_token=st.floats(0.0001, 0.002),
    prompts=st.lists(st.integers(2, 3000), min_size=1, max_size=4),
)
def test_steps_with_decodes_keep_to_the_target(
    per_step: float, per_token: float, prompts: list[int]
) -> None:
    target = 0.125
    scheduler = scheduler_with(target)
    for number in range(4):
        scheduler.submit(context(number, 8, 300), 0.0)
    for _ in range(20):  # what decodes cost is known before prompts arrive
        plan = scheduler.plan(0.0)
        assert plan is not None
        scheduler.observe(plan, seconds_of(plan, per_step, per_token))
        sampled = sum(row.samples for row in plan.rows)
        scheduler.apply(plan, StepResult(np.full(sampled, 7, dtype=np.int32)))
    for number, length in enumerate(prompts, start=10):
        scheduler.submit(context(number, length, 3), 0.0)

    told = run(scheduler, per_step, per_token)

    mixed = [step for step in told if step[0] and step[1]]
    # The first one is a guess; a page is the least there is, and a short end may start beside it.
    for _, tokens, seconds in mixed[1:]:
        assert seconds <= 1.02 * target or tokens <= 2 * PAGE
    # A chunk of one token is a row like those that decode.
    assert 0 <= sum(prompts) - sum(tokens for _, tokens, _ in told) <= len(prompts)


def test_a_slow_model_gets_chunks_of_a_few_of_its_own_steps() -> None:
    budget = PrefillBudget(0.125, 5.0, PAGE)
    budget.observe(8, 0, 0.2)
    budget.observe(8, 160, 0.36)

    assert budget.tokens == pytest.approx(800, abs=PAGE)


def test_it_follows_the_machine() -> None:
    budget = PrefillBudget(0.1, 0.0, PAGE)
    budget.observe(0, 1600, 0.16)
    before = budget.tokens
    for _ in range(20):
        budget.observe(0, 160, 0.16)

    assert before == 992
    assert budget.tokens == 96


def test_an_outlier_never_stops_prompts() -> None:
    budget = PrefillBudget(0.1, 0.0, PAGE)
    budget.observe(4, 0, 30.0)
    budget.observe(4, PAGE, 0.01)

    assert budget.tokens == PAGE

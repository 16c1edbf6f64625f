from typing import Any

import numpy as np
import pytest

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities, PromptLogProbabilities
from quire.pipelines.core.plan import StepPlan, StepResult
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus
from quire.pipelines.kv_cache.page_group import PageGroup
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.scheduler.queue import AGING_SECONDS_PER_LEVEL
from quire.pipelines.scheduler.scheduler import Scheduler
from quire.pipelines.scheduler.step_rows import StepRows

TOKEN = 5


def scheduler(**limits: Any) -> Scheduler:
    defaults = {"page_size": 4, "max_batch_size": 8, "max_batch_input_tokens": 64, "max_length": 64}
    groups = (PageGroup(limits.pop("num_pages", 16)),)
    return Scheduler(SchedulerConfig(**(defaults | {"page_groups": groups} | limits)))


def context(number: int, prompt: int | list[int], new: int = 8, **options: Any) -> TextContext:
    """A context of its own tokens, or of these."""
    tokens = (
        [100 * number + place for place in range(prompt)] if isinstance(prompt, int) else prompt
    )
    params = SamplingParams(max_new_tokens=new)
    options = {"max_length": 64} | options
    return TextContext(number, np.array(tokens, dtype=np.int32), params, **options)


def plan(subject: Scheduler, now: float = 0.0) -> StepPlan:
    step = subject.plan(now)
    assert step is not None
    return step


def finish(subject: Scheduler, step: StepPlan, errors: dict[int, str] | None = None) -> StepRows:
    count = sum(row.samples for row in step.rows)
    tokens = np.full(count, TOKEN, dtype=np.int32)
    for index in errors or {}:
        tokens[index] = -1
    rows = subject.apply(step, StepResult(tokens, errors=errors or {}))
    subject.check_integrity()
    return rows


def run(subject: Scheduler, now: float = 0.0) -> list[tuple[int, int, int]]:
    """One step; (request, start, count) of its rows."""
    step = plan(subject, now)
    finish(subject, step)
    return [(row.context.request_id, row.start, row.count) for row in step.rows]


def test_without_contexts_there_is_nothing_to_plan() -> None:
    subject = scheduler()
    assert subject.plan(0.0) is None
    assert not subject.has_work


def test_decode_goes_first_and_prompts_fill_the_rest_in_full_pages() -> None:
    subject = scheduler(max_batch_input_tokens=11)
    subject.submit(context(1, 3), 0.0)
    assert run(subject) == [(1, 0, 3)]
    subject.submit(context(2, 21), 0.0)
    assert run(subject) == [(1, 3, 1), (2, 0, 8)]
    assert run(subject) == [(1, 4, 1), (2, 8, 8)]
    assert run(subject) == [(1, 5, 1), (2, 16, 5)]
    assert run(subject) == [(1, 6, 1), (2, 21, 1)]


def test_what_a_chunk_leaves_of_the_step_goes_to_a_prompt_that_fits_whole() -> None:
    subject = scheduler(max_batch_input_tokens=11)
    for number, prompt in ((1, 17), (2, 3), (3, 3)):
        subject.submit(context(number, prompt), 0.0)
    assert run(subject) == [(1, 0, 8), (2, 0, 3)]
    assert run(subject) == [(2, 3, 1), (1, 8, 9)]


def test_a_small_step_runs_fewer_contexts_so_that_prompts_progress() -> None:
    subject = scheduler(max_batch_size=8, max_batch_input_tokens=8)
    assert subject.config.max_running == 5
    for number in range(1, 9):
        subject.submit(context(number, 6, new=2), 0.0)
    steps = 0
    while subject.has_work:
        step = plan(subject)
        assert step.num_tokens <= 8
        finish(subject, step)
        steps += 1
    assert steps <= 16


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"num_pages": 0}, "num_pages must be at least 1, not 0"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, not 0"),
        ({"max_batch_input_tokens": 3}, r"must be at least page_size \(4\), not 3"),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler(**limits)


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (context(1, 40, new=20), "needs 15 pages of KV memory; there are 14"),
        (context(1, 4, max_length=65), "may take 65 tokens; max_length is 64"),
        (context(1, 4, new=2, generated=np.array([7, 7], np.int32)), "all its tokens already"),
    ],
)
def test_a_context_that_can_never_run_is_refused(subject: TextContext, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler(num_pages=14).submit(subject, 0.0)


def test_the_last_token_needs_no_page() -> None:
    subject = scheduler(num_pages=2)
    subject.submit(context(1, 4, new=5), 0.0)
    while subject.has_work:
        run(subject)
    assert subject.stats().used_pages == 0


def test_admission_leaves_a_page_for_each_running_context() -> None:
    subject = scheduler(num_pages=4)
    subject.submit(context(1, 5), 0.0)
    subject.submit(context(2, 5), 0.0)
    assert run(subject) == [(1, 0, 5)]
    assert subject.stats().waiting == 1
    subject.abort([1])
    assert run(subject) == [(2, 0, 5)]


def test_priority_is_a_head_start_that_waiting_makes_up_for() -> None:
    subject = scheduler(max_batch_size=1)
    subject.submit(context(1, 3, new=1, priority=1), 0.0)
    subject.submit(context(2, 3, new=1), AGING_SECONDS_PER_LEVEL - 1)
    subject.submit(context(3, 3, new=1), AGING_SECONDS_PER_LEVEL + 1)
    subject.submit(context(4, 3, new=1, priority=-1), AGING_SECONDS_PER_LEVEL + 1)
    order = [run(subject, 9.0)[0][0] for _ in range(4)]
    assert order == [4, 2, 1, 3]


def test_equal_claims_go_by_arrival() -> None:
    subject = scheduler(max_batch_size=1)
    for number in (5, 3, 4):
        subject.submit(context(number, 3, new=1), 1.0)
    assert [run(subject)[0][0] for _ in range(3)] == [5, 3, 4]


def test_the_newest_is_preempted_and_resumes_from_its_cached_pages() -> None:
    subject = scheduler(num_pages=5)
    first, second = context(1, 4, new=9), context(2, 4, new=12)
    subject.submit(first, 0.0)
    subject.submit(second, 1.0)
    for _ in range(5):
        run(subject, 1.0)
    assert subject.stats().used_pages == 4
    assert run(subject, 1.0) == [(1, 8, 1)]
    stats = subject.stats()
    assert (stats.preemptions, stats.running, stats.waiting) == (1, 1, 1)
    assert (subject.take_preempted(), subject.take_preempted()) == ([2], [])
    assert (second.tokens.prompt_length, second.tokens.generated_length) == (4, 5)
    while not first.is_done:
        run(subject, 1.0)
    assert run(subject, 50.0) == [(2, 8, 1)]
    assert second.cached_prefix_length == 0


def test_a_context_without_older_ones_preempts_itself_never_the_oldest() -> None:
    subject = scheduler(num_pages=4)
    old, new = context(1, 7, new=6), context(2, 3, new=6)
    subject.submit(old, 0.0)
    subject.submit(new, 0.0)
    seen = []
    while subject.has_work:
        seen.append({request for request, _, _ in run(subject)})
        if not old.is_done:
            assert 1 in seen[-1]
    assert subject.stats().preemptions == 1
    assert old.status is new.status is TextGenerationStatus.MAXIMUM_LENGTH


def test_shared_prompt_pages_are_run_once_and_counted_as_cached() -> None:
    subject = scheduler()
    prompt = list(range(10))
    first, second = context(1, prompt), context(2, [*prompt, 77])
    subject.submit(first, 0.0)
    run(subject)
    subject.submit(second, 0.0)
    assert run(subject)[-1] == (2, 8, 3)
    assert (first.cached_prefix_length, second.cached_prefix_length) == (0, 8)
    stats = subject.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (21, 8)
    subject.reset_prefix_cache()
    subject.submit(context(3, prompt), 0.0)
    assert run(subject)[-1] == (3, 0, 10)


def test_a_prompt_whose_log_probabilities_are_asked_for_is_run_whole() -> None:
    subject = scheduler()
    prompt = list(range(10))
    subject.submit(context(1, prompt), 0.0)
    run(subject)
    asking = context(2, prompt)
    asking.params = SamplingParams(max_new_tokens=8, prompt_logprobs=1)
    subject.submit(asking, 0.0)
    step = plan(subject)
    rows = [row for row in step.rows if row.context is asking]
    assert [(row.start, row.count) for row in rows] == [(0, 10)]
    told = [PromptLogProbabilities(2, 1, []), PromptLogProbabilities(99, 1, [])]
    result = StepResult(np.full(len(step.rows), 7, np.int32), prompt_logprobs=told)
    assert subject.apply(step, result).prompt_logprobs == told[:1]


def test_a_resumed_context_reports_no_more_than_its_prompt_as_cached() -> None:
    subject = scheduler()
    twin = context(1, 5, new=8)
    subject.submit(twin, 0.0)
    while subject.has_work:
        run(subject)
    resumed = context(2, twin.tokens.prompt.tolist(), new=9, generated=twin.tokens.generated)
    subject.submit(resumed, 0.0)
    assert run(subject) == [(2, 12, 1)]
    assert resumed.cached_prefix_length == 5


def test_abort_frees_pages_at_any_stage_and_counts_strangers() -> None:
    subject = scheduler(max_batch_input_tokens=8, max_batch_size=2)
    for number, prompt in ((1, 3), (2, 20), (3, 3)):
        subject.submit(context(number, prompt), 0.0)
    run(subject)
    run(subject)
    subject.abort([1, 2, 3, 3, 99])
    subject.check_integrity()
    stats = subject.stats()
    assert (stats.running, stats.waiting, stats.used_pages) == (0, 0, 0)
    assert not subject.has_work
    assert subject.ignored_aborts == 2


def test_a_row_aborted_while_its_step_runs_gives_nothing() -> None:
    subject = scheduler()
    subject.submit(context(1, 3), 0.0)
    subject.submit(context(2, 3), 0.0)
    step = plan(subject)
    subject.abort([1])
    subject.submit(context(1, 9), 0.0)
    assert finish(subject, step).request_ids == [2]


def test_a_live_context_is_not_doubled() -> None:
    subject = scheduler()
    subject.submit(context(1, 3), 0.0)
    subject.submit(context(1, 3), 0.0)
    run(subject)
    subject.submit(context(1, 3), 0.0)
    assert (subject.stats().running, subject.stats().waiting) == (1, 0)
    assert subject.ignored_submits == 2


def test_a_failed_row_ends_alone_and_its_pages_are_scrubbed_not_found() -> None:
    subject = scheduler()
    prompt = list(range(9))
    bad, good = context(1, prompt), context(2, 3)
    subject.submit(bad, 0.0)
    subject.submit(good, 0.0)
    run(subject)
    step = plan(subject)
    pages = list(step.rows[0].tables[0])
    rows = finish(subject, step, {0: "NaN"})
    assert rows.errors == {0: "NaN"}
    assert (rows.tokens, rows.base_index) == ([-1, TOKEN], [1, 1])
    assert bad.status is TextGenerationStatus.FAILED
    (scrubbed,) = subject.take_pages_to_scrub()
    assert sorted(scrubbed) == sorted(pages)
    assert subject.take_pages_to_scrub() == []
    subject.submit(context(3, prompt), 0.0)
    assert run(subject) == [(2, 4, 1), (3, 0, 9)]


def test_a_failed_rows_shared_page_is_scrubbed_when_the_last_holder_lets_go() -> None:
    subject = scheduler()
    for number in (1, 2):
        subject.submit(context(number, [1, 2, 3, 4, 5]), 0.0)
        run(subject)
    step = plan(subject)
    shared = step.rows[0].tables[0][0]
    assert step.rows[1].tables[0][0] == shared
    finish(subject, step, {0: "NaN"})
    assert shared not in subject.take_pages_to_scrub()[0]
    subject.abort([2])
    assert subject.take_pages_to_scrub() == [[shared]]


def test_logprobs_stay_with_their_row() -> None:
    subject = scheduler()
    for number in (1, 2, 3):
        subject.submit(context(number, 3), 0.0)
    step = plan(subject)
    subject.abort([1])
    logprobs = [None, None, LogProbabilities(-1.0, {TOKEN: -1.0})]
    rows = subject.apply(step, StepResult(np.full(3, TOKEN, dtype=np.int32), logprobs))
    assert rows.request_ids == [2, 3]
    assert rows.logprobs == {1: logprobs[2]}


@pytest.mark.parametrize("count", [0, 2])
def test_a_result_of_the_wrong_length_is_an_error(count: int) -> None:
    subject = scheduler()
    subject.submit(context(1, 3), 0.0)
    with pytest.raises(ValueError, match=f"1 rows sample, the result has {count} tokens"):
        subject.apply(plan(subject), StepResult(np.full(count, TOKEN, dtype=np.int32)))


def test_counters_tell_prefill_from_decode() -> None:
    subject = scheduler(max_batch_input_tokens=8)
    subject.submit(context(1, 10, new=3), 0.0)
    while subject.has_work:
        run(subject)
    stats = subject.stats()
    assert (stats.steps, stats.prefill_tokens, stats.decode_tokens) == (4, 10, 2)
    assert (stats.total_pages, stats.cached_pages) == (16, 3)


def test_queue_time_is_from_receipt_to_first_schedule() -> None:
    subject = scheduler(max_batch_size=1)
    subject.submit(context(1, 3, new=2), 10.0)
    subject.submit(context(2, 3, new=2), 10.0)
    times = []
    for now in (11.0, 12.0, 13.0, 14.0):
        times += finish(subject, plan(subject, now)).queue_seconds
    assert times == [1.0, 1.0, 3.0, 3.0]


def test_many_aborted_waiters_do_not_pile_up() -> None:
    subject = scheduler(max_batch_size=1)
    subject.submit(context(0, 3, new=1), 0.0)
    for number in range(1, 500):
        subject.submit(context(number, 3), 1.0)
        subject.abort([number])
    assert len(subject._waiting._heap) < 50
    assert run(subject) == [(0, 0, 3)]


WINDOWED = (PageGroup(16), PageGroup(5, window=5))
"""Five pages are enough for a step of 8 tokens and the window before it."""


def test_a_long_prompt_moves_through_a_small_pool_of_its_window() -> None:
    subject = scheduler(page_groups=WINDOWED, max_batch_input_tokens=8)
    subject.submit(context(1, 50, new=4), 0.0)
    while subject.has_work:
        step = plan(subject)
        finish(subject, step)
        assert subject.stats().kv_usage <= 14 / 16
    assert subject.stats().used_pages == 0
    assert subject.stats().preemptions == 0


def test_who_finds_no_page_in_a_group_with_a_window_is_preempted() -> None:
    subject = scheduler(
        page_groups=(PageGroup(32), PageGroup(6, window=6)), max_batch_input_tokens=11
    )
    older, newer = context(1, 40, new=2), context(2, 3, new=9)
    subject.submit(older, 0.0)
    subject.submit(newer, 1.0)
    assert run(subject, 1.0) == [(1, 0, 8), (2, 0, 3)]
    assert run(subject, 1.0) == [(2, 3, 1), (1, 8, 8)]
    assert run(subject, 1.0) == [(1, 16, 8)]
    assert subject.stats().preemptions == 1
    while subject.has_work:
        run(subject, 1.0)
    assert older.status is newer.status is TextGenerationStatus.MAXIMUM_LENGTH


def test_the_usage_is_that_of_the_fullest_group() -> None:
    subject = scheduler(page_groups=(PageGroup(16), PageGroup(4, window=5)))
    subject.submit(context(1, 7), 0.0)
    run(subject)
    stats = subject.stats()
    assert (stats.used_pages, stats.total_pages, stats.kv_usage) == (4, 20, 0.5)


def test_without_page_groups_there_is_no_scheduler() -> None:
    with pytest.raises(ValueError, match="page_groups must not be empty"):
        scheduler(page_groups=())

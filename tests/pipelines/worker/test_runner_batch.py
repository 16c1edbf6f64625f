"""`build_inputs`: the tensors of a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.pipelines.core.plan import PlanRow, StepPlan
from quire.pipelines.worker.batch import build_inputs

CPU = torch.device("cpu")


def test_rows_lie_end_to_end_with_their_pages_and_positions(
    context_of: Callable[..., Any],
) -> None:
    decode = context_of(range(100, 120))
    prefill = context_of(range(40))
    single = context_of([7])
    plan = StepPlan(
        [
            PlanRow(decode, 19, 1, [[5, 3]], samples=True),
            PlanRow(prefill, 14, 4, [[9, 0, 8, 2]], samples=False),
            PlanRow(single, 0, 1, [[1]], samples=True),
        ]
    )

    inputs = build_inputs(plan, 16, CPU)

    (batch,) = inputs.batches
    assert inputs.tokens.tolist() == [119, 14, 15, 16, 17, 7]
    assert inputs.logit_rows.tolist() == [0, 5]
    assert batch.input_row_offsets.tolist() == [0, 1, 5, 6]
    assert batch.cache_lengths.tolist() == [19, 14, 0]
    assert batch.positions.tolist() == [19, 14, 15, 16, 17, 0]
    assert batch.lookup_table.tolist() == [[5, 3], [9, 0], [1, 0]]
    assert batch.slots.tolist() == [3 * 16 + 3, 9 * 16 + 14, 9 * 16 + 15, 0, 1, 16]
    assert (batch.query_lengths, batch.kv_lengths) == ((1, 4, 1), (20, 18, 1))
    assert batch.num_decode == 1
    dtypes = {name: getattr(batch, name).dtype for name in ("positions", "lookup_table", "slots")}
    assert dtypes == {
        "positions": torch.int32,
        "lookup_table": torch.int32,
        "slots": torch.int64,
    }
    assert (inputs.tokens.dtype, inputs.logit_rows.dtype) == (torch.int32, torch.int64)


@pytest.mark.parametrize(("count", "pages"), [(17, [4]), (21, [4, 5])])
def test_a_row_beyond_its_pages_or_its_history_is_refused(
    count: int, pages: list[int], context_of: Callable[..., Any]
) -> None:
    plan = StepPlan([PlanRow(context_of(range(20)), 0, count, [pages], samples=False)])

    with pytest.raises(ValueError, match=f"tokens up to {count} need 2 pages"):
        build_inputs(plan, 16, CPU)


def test_page_groups_differ_in_their_pages_alone(context_of: Callable[..., Any]) -> None:
    plan = StepPlan(
        [
            PlanRow(context_of(range(40)), 39, 1, [[5, 3, 9], [0, 0, 2]], samples=True),
            PlanRow(context_of(range(20)), 16, 4, [[1, 4], [7, 6]], samples=True),
        ]
    )

    full, windowed = build_inputs(plan, 16, CPU).batches

    assert full.lookup_table.tolist() == [[5, 3, 9], [1, 4, 0]]
    assert windowed.lookup_table.tolist() == [[0, 0, 2], [7, 6, 0]]
    assert full.slots.tolist() == [9 * 16 + 7, 64, 65, 66, 67]
    assert windowed.slots.tolist() == [2 * 16 + 7, 96, 97, 98, 99]
    for name in ("input_row_offsets", "cache_lengths", "positions", "kv_lengths", "num_decode"):
        assert getattr(full, name) is getattr(windowed, name)


def test_too_few_pages_in_any_group_are_refused(context_of: Callable[..., Any]) -> None:
    plan = StepPlan([PlanRow(context_of(range(20)), 0, 20, [[1, 2], [3]], samples=True)])

    with pytest.raises(ValueError, match="tokens up to 20 need 2 pages, 1 given"):
        build_inputs(plan, 16, CPU)

"""Grouping pairs by expert: stable, complete, and safe with experts of other devices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.kernels.moe_create_indices import moe_create_indices
from quire.kernels.moe_create_indices.kernel import moe_create_indices_triton

Create = Callable[..., tuple[torch.Tensor, ...]]
PATHS = [
    pytest.param(moe_create_indices, id="cpu"),
    pytest.param(moe_create_indices_triton, id="triton"),
]


def created(create: Create, ids: list[int], experts: int) -> list[list[int]]:
    return [out.tolist() for out in create(torch.tensor(ids, dtype=torch.int32), experts)]


@pytest.mark.parametrize("create", PATHS)
def test_an_example(create: Create) -> None:
    order, starts, restore, expert_ids, stats = created(create, [3, 1, 3, 0, 1, 3], 5)

    assert order == [3, 1, 4, 0, 2, 5]
    assert starts == [0, 1, 3, 6, 6, 6]
    assert restore == [3, 1, 4, 0, 2, 5]
    assert expert_ids == [0, 1, 3, -1, -1]
    assert stats == [3, 3]


@pytest.mark.parametrize("create", PATHS)
def test_foreign_experts_come_last(create: Create) -> None:
    order, starts, restore, expert_ids, stats = created(create, [7, 1, -1, 0, 2, 1], 2)

    assert order == [3, 1, 5, 0, 2, 4]
    assert starts == [0, 1, 3]
    assert restore == [3, 1, 4, 0, 5, 2]
    assert expert_ids == [0, 1]
    assert stats == [2, 2]


@pytest.mark.parametrize("create", PATHS)
def test_no_pairs(create: Create) -> None:
    order, starts, restore, expert_ids, stats = created(create, [], 3)

    assert order == restore == []
    assert starts == [0, 0, 0, 0]
    assert expert_ids == [-1, -1, -1]
    assert stats == [0, 0]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(-2, 9), max_size=60), st.integers(1, 8))
def test_equals_a_stable_sort_of_numpy(ids: list[int], experts: int) -> None:
    keys = np.array([id if 0 <= id < experts else experts for id in ids], dtype=np.int64)
    expected = np.argsort(keys, kind="stable").tolist()
    present, counts = np.unique(keys[keys < experts], return_counts=True)
    for create in (moe_create_indices, moe_create_indices_triton):
        order, starts, restore, expert_ids, stats = created(create, ids, experts)

        assert order == expected
        assert [order[place] for place in restore] == list(range(len(ids)))
        assert expert_ids == present.tolist() + [-1] * (experts - len(present))
        ends = [0, *np.cumsum(counts).tolist()]
        assert starts == ends + [len(ids)] * (experts + 1 - len(ends))
        assert stats == [max(counts.tolist(), default=0), len(present)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topk_ids": torch.ones(2, 3).int()}, r"topk_ids must be \[M\], got \[2, 3\]"),
        ({"topk_ids": torch.ones(3).long()}, "topk_ids must be of int32, got int64"),
        ({"topk_ids": torch.ones(6).int()[::2]}, r"topk_ids must be contiguous, got strides \[2\]"),
        ({"num_local_experts": 0}, "num_local_experts must be from 1 to 4096, got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = {"topk_ids": torch.ones(3).int(), "num_local_experts": 4} | changes
    with pytest.raises(ValueError, match=message):
        moe_create_indices(**inputs)

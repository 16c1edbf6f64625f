"""Ragged helpers against Python's own lists."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.kernels.ragged_helpers import (
    gather_tokens,
    kv_cache_get_max_seq_len,
    merge_ragged_tensors,
    row_offsets,
    scatter_tokens,
)
from quire.kernels.ragged_helpers.kernel import (
    gather_tokens_triton,
    kv_cache_get_max_seq_len_triton,
    merge_ragged_tensors_triton,
    row_offsets_triton,
    scatter_tokens_triton,
)

Run = Callable[..., Any]


def both(function: Run, triton: Run) -> pytest.MarkDecorator:
    paths = [pytest.param(function, id="cpu"), pytest.param(triton, id="triton")]
    return pytest.mark.parametrize("run", paths)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@both(merge_ragged_tensors, merge_ragged_tensors_triton)
def test_merges_the_example_of_the_docstring(run: Run) -> None:
    merged, offsets = run(ints(1, 2, 3, 4, 5, 6), ints(0, 2, 6), ints(7, 8, 9, 10), ints(0, 3, 4))

    assert merged.tolist() == [1, 2, 7, 8, 9, 3, 4, 5, 6, 10]
    assert offsets.tolist() == [0, 5, 10]
    assert offsets.dtype == torch.int32


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=9))
def test_merges_as_lists_do(counts: list[tuple[int, int]]) -> None:
    a_offsets = [0, *accumulate(a for a, _ in counts)]
    b_offsets = [0, *accumulate(b for _, b in counts)]
    a = torch.arange(a_offsets[-1])
    b = 100 + torch.arange(b_offsets[-1])
    expected = [
        value
        for context in range(len(counts))
        for rows, offsets in ((a, a_offsets), (b, b_offsets))
        for value in rows[offsets[context] : offsets[context + 1]].tolist()
    ]
    for run in (merge_ragged_tensors, merge_ragged_tensors_triton):
        merged, offsets = run(a, ints(*a_offsets), b, ints(*b_offsets))

        assert merged.tolist() == expected
        assert offsets.tolist() == [x + y for x, y in zip(a_offsets, b_offsets, strict=True)]


@both(row_offsets, row_offsets_triton)
@pytest.mark.parametrize("lengths", [[], [5], [0, 3, 0, 2], list(range(1500))], ids=len)
def test_offsets_are_running_sums(run: Run, lengths: list[int]) -> None:
    offsets = run(ints(*lengths))

    assert offsets.tolist() == [0, *accumulate(lengths)]
    assert offsets.dtype == torch.int32


@both(kv_cache_get_max_seq_len, kv_cache_get_max_seq_len_triton)
def test_longest_context_counts_old_and_new_keys(run: Run) -> None:
    longest = run(ints(10, 3, 7), ints(0, 1, 9, 13))

    assert longest.shape == ()
    assert longest.item() == max(10 + 1, 3 + 8, 7 + 4)
    assert run(ints(), ints(0)).item() == 0
    many = torch.arange(1100, dtype=torch.int32)
    assert run(many.flip(0), torch.arange(1101, dtype=torch.int32)).item() == 1100


@both(gather_tokens, gather_tokens_triton)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_gathers_and_gives_zero_outside_the_table(run: Run, dtype: torch.dtype) -> None:
    table = torch.arange(100, 120, dtype=torch.int32).view(4, 5)

    tokens = run(table, ints(3, -1, 0, 4, 2, 1).to(dtype), ints(4, 2, 0, 0, 5, -1).to(dtype))

    assert tokens.tolist() == [119, 0, 100, 0, 0, 0]
    assert tokens.dtype == torch.int32


@both(scatter_tokens, scatter_tokens_triton)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_scatters_and_skips_rows_outside_the_table(run: Run, dtype: torch.dtype) -> None:
    table = torch.zeros(4, 5, dtype=torch.int32)
    expected = table.clone()
    expected[3, 4], expected[0, 0] = 7, 9

    run(table, ints(3, -1, 0, 4, 2, 1), ints(4, 2, 0, 0, 5, -1), ints(7, 8, 9, 1, 2, 3).to(dtype))

    assert torch.equal(table, expected)


def test_a_sampled_token_is_read_by_the_next_step() -> None:
    table = torch.zeros(8, 16, dtype=torch.int32)
    slots, positions = ints(5, -1, 2), ints(3, 0, 15)
    sampled = torch.tensor([151935, 17, 42])

    scatter_tokens(table, slots, positions, sampled)

    assert gather_tokens(table, slots, positions).tolist() == [151935, 0, 42]


@both(gather_tokens, gather_tokens_triton)
def test_no_rows_give_no_tokens(run: Run) -> None:
    assert run(torch.zeros(2, 2, dtype=torch.int32), ints(), ints()).shape == (0,)


@both(scatter_tokens, scatter_tokens_triton)
def test_no_rows_write_nothing(run: Run) -> None:
    table = torch.ones(2, 2, dtype=torch.int32)
    run(table, ints(), ints(), ints())
    assert table.eq(1).all()


TABLE = torch.zeros(2, 3, dtype=torch.int32)
ROW = ints(0)
WRONG: list[tuple[Run, tuple[Any, ...], str]] = [
    (merge_ragged_tensors, (ints(1)[0], ROW, ROW, ROW), r"a must be \[A, ...\], got \[\]"),
    (merge_ragged_tensors, (ROW.double(), ROW, ROW, ROW), "a must be of .* got float64"),
    (merge_ragged_tensors, (ROW, ROW.long(), ROW, ROW), "a_row_offsets must be of int32"),
    (merge_ragged_tensors, (ROW, ints(), ROW, ints()), "a_row_offsets must have at least one"),
    (merge_ragged_tensors, (ROW, ROW, ROW.long(), ROW), "b must be of int32, got int64"),
    (merge_ragged_tensors, (ROW, ROW, TABLE, ROW), r"b must be \[N\], got \[2, 3\]"),
    (merge_ragged_tensors, (ROW, ROW, ROW, ints(0, 1)), r"b_row_offsets must be \[1\], got \[2\]"),
    (row_offsets, (TABLE,), r"lengths must be \[B\], got \[2, 3\]"),
    (row_offsets, (ROW.long(),), "lengths must be of int32, got int64"),
    (kv_cache_get_max_seq_len, (TABLE, ROW), r"cache_lengths must be \[B\], got \[2, 3\]"),
    (kv_cache_get_max_seq_len, (ROW, ROW), r"input_row_offsets must be \[2\], got \[1\]"),
    (gather_tokens, (TABLE.long(), ROW, ROW), "token_table must be of int32, got int64"),
    (gather_tokens, (TABLE.t(), ROW, ROW), "token_table must be contiguous"),
    (gather_tokens, (ROW, ROW, ROW), r"token_table must be \[slots, max_length\], got \[1\]"),
    (gather_tokens, (TABLE, ROW.half(), ROW), "slots must be of int32 or int64, got float16"),
    (gather_tokens, (TABLE, ROW, ints(0, 1)), r"positions must be \[1\], got \[2\]"),
    (scatter_tokens, (TABLE, ROW, ROW, ints(0, 1)), r"tokens must be \[1\], got \[2\]"),
    (scatter_tokens, (TABLE, ROW, ROW, ROW.half()), "tokens must be of int32 or int64"),
]


@pytest.mark.parametrize(("run", "arguments", "message"), WRONG)
def test_wrong_inputs_are_named(run: Run, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(*arguments)

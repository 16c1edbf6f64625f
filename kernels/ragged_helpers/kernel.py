"""Triton: ragged helpers; counts of a step are never specialized, so no step recompiles."""

import torch
import triton
import triton.language as tl

BLOCK = 1024
BLOCK_TOKENS = 128


@triton.jit(do_not_specialize=["num_contexts", "shift"])
def place_rows_kernel(
    rows, row_offsets, other_offsets, merged, num_contexts, shift, columns, BLOCK: tl.constexpr
):
    """Grid (rows, blocks of columns): rows go after `other_offsets[context + shift]` others."""
    row = tl.program_id(0)
    # The row's context is the number of contexts that end at or before it.
    low = 0
    high = num_contexts
    while low < high:
        middle = (low + high) // 2
        is_past = tl.load(row_offsets + middle + 1) <= row
        low = tl.where(is_past, middle + 1, low)
        high = tl.where(is_past, high, middle)
    is_row = low < num_contexts
    before = tl.load(other_offsets + low + shift, mask=is_row, other=0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = is_row & (column < columns)
    value = tl.load(rows + row.to(tl.int64) * columns + column, mask=mask, other=0)
    tl.store(merged + (row + before).to(tl.int64) * columns + column, value, mask=mask)


@triton.jit(do_not_specialize=["count"])
def row_offsets_kernel(lengths, offsets, count, BLOCK: tl.constexpr):
    """Grid (1,)."""
    total = 0
    tl.store(offsets, total)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < count
        length = tl.load(lengths + index, mask=mask, other=0)
        tl.store(offsets + 1 + index, total + tl.cumsum(length, 0), mask=mask)
        total += tl.sum(length, 0)


@triton.jit(do_not_specialize=["count"])
def max_length_kernel(cache_lengths, input_row_offsets, longest, count, BLOCK: tl.constexpr):
    """Grid (1,)."""
    most = 0
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < count
        length = tl.load(cache_lengths + index, mask=mask, other=0)
        length += tl.load(input_row_offsets + 1 + index, mask=mask, other=0)
        length -= tl.load(input_row_offsets + index, mask=mask, other=0)
        most = tl.maximum(most, tl.max(length, 0))
    tl.store(longest, most)


@triton.jit
def _places(slots, positions, index, is_row, num_slots, max_length):
    """Each row's element of the table, and whether it has one."""
    slot = tl.load(slots + index, mask=is_row, other=-1).to(tl.int64)
    position = tl.load(positions + index, mask=is_row, other=0)
    inside = (slot >= 0) & (slot < num_slots) & (position >= 0) & (position < max_length)
    return slot * max_length + position, inside


@triton.jit(do_not_specialize=["count"])
def gather_tokens_kernel(
    token_table, slots, positions, tokens, count, num_slots, max_length, BLOCK: tl.constexpr
):
    """Grid (blocks of rows,)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = index < count
    place, inside = _places(slots, positions, index, is_row, num_slots, max_length)
    tl.store(tokens + index, tl.load(token_table + place, mask=inside, other=0), mask=is_row)


@triton.jit(do_not_specialize=["count"])
def scatter_tokens_kernel(
    token_table, slots, positions, tokens, count, num_slots, max_length, BLOCK: tl.constexpr
):
    """Grid (blocks of rows,)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = index < count
    place, inside = _places(slots, positions, index, is_row, num_slots, max_length)
    token = tl.load(tokens + index, mask=is_row, other=0).to(tl.int32)
    tl.store(token_table + place, token, mask=inside)


def merge_ragged_tensors_triton(
    a: torch.Tensor, a_row_offsets: torch.Tensor, b: torch.Tensor, b_row_offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `merge_ragged_tensors`."""
    merged = a.new_empty(a.shape[0] + b.shape[0], *a.shape[1:])
    columns = a.shape[1:].numel()
    for rows, own, other, shift in (
        (a, a_row_offsets, b_row_offsets, 0),
        (b, b_row_offsets, a_row_offsets, 1),
    ):
        if rows.numel():
            place_rows_kernel[(rows.shape[0], triton.cdiv(columns, BLOCK))](
                rows, own, other, merged, own.shape[0] - 1, shift, columns, BLOCK=BLOCK
            )
    return merged, a_row_offsets + b_row_offsets


def row_offsets_triton(lengths: torch.Tensor) -> torch.Tensor:
    """As `row_offsets`."""
    offsets = lengths.new_empty(lengths.shape[0] + 1)
    row_offsets_kernel[(1,)](lengths, offsets, lengths.shape[0], BLOCK=BLOCK)
    return offsets


def kv_cache_get_max_seq_len_triton(
    cache_lengths: torch.Tensor, input_row_offsets: torch.Tensor
) -> torch.Tensor:
    """As `kv_cache_get_max_seq_len`."""
    longest = cache_lengths.new_empty(())
    max_length_kernel[(1,)](
        cache_lengths, input_row_offsets, longest, cache_lengths.shape[0], BLOCK=BLOCK
    )
    return longest


def gather_tokens_triton(
    token_table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """As `gather_tokens`."""
    count = slots.shape[0]
    tokens = torch.empty_like(slots, dtype=torch.int32)
    if count:
        gather_tokens_kernel[(triton.cdiv(count, BLOCK_TOKENS),)](
            token_table, slots, positions, tokens, count, *token_table.shape, BLOCK=BLOCK_TOKENS
        )
    return tokens


def scatter_tokens_triton(
    token_table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
) -> None:
    """As `scatter_tokens`."""
    count = slots.shape[0]
    if count:
        scatter_tokens_kernel[(triton.cdiv(count, BLOCK_TOKENS),)](
            token_table, slots, positions, tokens, count, *token_table.shape, BLOCK=BLOCK_TOKENS
        )

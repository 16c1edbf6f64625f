"""Triton: attention over another sequence's pages, one program per tile of queries and key head."""

import torch
import triton
import triton.language as tl

from quire.kernels.flash_attention_gpu.kernel import attend, find_tile, load_columns, normalized
from quire.kernels.flash_attention_gpu.tiles import (
    LOG2_E,
    attention_tile,
    head_parts,
    key_columns,
    padded,
)


@triton.jit(do_not_specialize=["lookup_stride", "num_contexts"])
def cross_attention_kernel(
    q,
    k_cache,
    v_cache,
    out,
    offsets,
    kv_lengths,
    lookup_table,
    positions,
    lookup_stride,
    num_contexts,
    num_kv_heads,
    score_scale,
    GROUP: tl.constexpr,
    MAIN: tl.constexpr,
    MAIN_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
    VALUE_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid (row tiles, key heads). Rows of a tile are tokens x the heads of one key head."""
    HEAD_DIM: tl.constexpr = MAIN + REST
    kv_head = tl.program_id(1)
    context, first_row = find_tile(offsets, 0, num_contexts, tl.program_id(0), GROUP, BLOCK_M)
    first_token = tl.load(offsets + context)
    num_rows = (tl.load(offsets + context + 1) - first_token) * GROUP
    if first_row >= num_rows:
        return
    row = first_row + tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    token = first_token + row // GROUP
    head = kv_head * GROUP + row % GROUP
    row_offsets = (token.to(tl.int64) * (num_kv_heads * GROUP) + head) * HEAD_DIM
    q_main = load_columns(q, row_offsets, is_row, MAIN, MAIN_PADDED)
    q_rest = q_main
    if REST > 0:
        q_rest = load_columns(q + MAIN, row_offsets, is_row, REST, REST_PADDED)

    kv_length = tl.load(kv_lengths + context)
    first = 0
    end = kv_length
    lowest = tl.zeros([BLOCK_M], tl.int32)
    highest = tl.zeros([BLOCK_M], tl.int32) + (kv_length - 1)
    if WINDOW > 0:
        position = tl.load(positions + token, mask=is_row, other=0)
        lowest = position - WINDOW + 1
        highest = tl.minimum(highest, position + WINDOW - 1)
        first = tl.maximum(tl.min(tl.where(is_row, lowest, kv_length)), 0)
        end = tl.minimum(end, tl.max(tl.where(is_row, highest, -1)) + 1)
    pages = lookup_table + context.to(tl.int64) * lookup_stride
    head_base = kv_head * PAGE_SIZE * HEAD_DIM
    page_stride = num_kv_heads * PAGE_SIZE * HEAD_DIM
    sources = (
        (k_cache + head_base, pages, page_stride, HEAD_DIM),
        (k_cache + head_base + MAIN, pages, page_stride, HEAD_DIM),
        (v_cache + head_base, pages, page_stride, HEAD_DIM),
    )
    state = attend(
        q_main, q_rest, lowest, highest, (first, end), sources, score_scale,
        MAIN, REST, HEAD_DIM, VALUE_PADDED, PAGE_SIZE, PAGE_SIZE, BLOCK_N,
    )  # fmt: skip
    column = tl.arange(0, VALUE_PADDED)
    tl.store(
        out + row_offsets[:, None] + column[None, :],
        normalized(state).to(out.dtype.element_ty),
        mask=is_row[:, None] & (column < HEAD_DIM)[None, :],
    )


def cross_attention_ragged_triton(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    input_row_offsets: torch.Tensor,
    kv_lengths: torch.Tensor,
    lookup_table: torch.Tensor,
    *,
    scale: float,
    local_window_size: int = -1,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `cross_attention_ragged`."""
    tokens, heads, head_dim = q_THD.shape
    _, kv_heads, page_size, _ = k_cache.shape
    contexts, group = kv_lengths.shape[0], heads // kv_heads
    out = torch.empty_like(q_THD)
    head = head_parts(head_dim)
    tile = attention_tile(key_columns(head) + padded(head_dim), q_THD.dtype)
    if tokens:
        cross_attention_kernel[(tokens * group // tile["BLOCK_M"] + contexts, kv_heads)](
            q_THD,
            k_cache,
            v_cache,
            out,
            input_row_offsets,
            kv_lengths,
            lookup_table,
            kv_lengths if positions is None else positions,
            lookup_table.stride(0),
            contexts,
            kv_heads,
            scale * LOG2_E,
            GROUP=group,
            VALUE_PADDED=padded(head_dim),
            PAGE_SIZE=page_size,
            WINDOW=max(local_window_size, 0),
            **head,
            **tile,
        )
    return out

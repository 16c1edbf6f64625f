"""Triton: plan, decompression and attention of latent prefill, chunk by chunk."""

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
    parts,
)
from quire.kernels.linear.kernel import linear_triton
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.triton_helpers import merge_states

GATHERED_ROWS = 16
PLAN_ROWS = ("buffer_row_offsets", "cache_offsets", "buffer_length")
"""A row of a plan starts at any multiple of 4 bytes: no kernel is compiled for one that is at 16."""


@triton.jit(do_not_specialize=["num_contexts", "buffer_size"])
def prefill_plan_kernel(
    buffer_row_offsets,
    cache_offsets,
    buffer_lengths,
    input_row_offsets,
    cache_lengths,
    num_contexts,
    buffer_size,
    BLOCK: tl.constexpr,
):
    """Grid (chunks,). Chunk c has the keys from c * buffer_size, counted over all contexts."""
    chunk = tl.program_id(0).to(tl.int64)
    first = chunk * buffer_size
    row_offsets = buffer_row_offsets + chunk * (num_contexts + 1)
    total = 0
    for start in range(0, num_contexts, BLOCK):
        context = start + tl.arange(0, BLOCK)
        is_context = context < num_contexts
        length = tl.load(cache_lengths + context, mask=is_context, other=0)
        length += tl.load(input_row_offsets + context + 1, mask=is_context, other=0)
        length -= tl.load(input_row_offsets + context, mask=is_context, other=0)
        before = total + tl.cumsum(length) - length
        row = tl.minimum(tl.maximum(before - first, 0), buffer_size)
        tl.store(row_offsets + context, row.to(tl.int32), mask=is_context)
        key = tl.minimum(tl.maximum(first - before, 0), length)
        target = cache_offsets + chunk * num_contexts + context
        tl.store(target, key.to(tl.int32), mask=is_context)
        total += tl.sum(length)
    filled = tl.minimum(tl.maximum(total - first, 0), buffer_size).to(tl.int32)
    tl.store(row_offsets + num_contexts, filled)
    tl.store(buffer_lengths + chunk, filled)


def flare_mla_prefill_plan_triton(
    batch: RaggedBatch, buffer_size: int, max_chunks: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `flare_mla_prefill_plan`."""
    contexts = len(batch.query_lengths)
    buffer_row_offsets = batch.cache_lengths.new_empty(max_chunks, contexts + 1)
    cache_offsets = batch.cache_lengths.new_empty(max_chunks, contexts)
    buffer_lengths = batch.cache_lengths.new_empty(max_chunks)
    prefill_plan_kernel[(max_chunks,)](
        buffer_row_offsets,
        cache_offsets,
        buffer_lengths,
        batch.input_row_offsets,
        batch.cache_lengths,
        contexts,
        buffer_size,
        BLOCK=256,
    )
    return buffer_row_offsets, cache_offsets, buffer_lengths


@triton.jit(
    do_not_specialize=["lookup_stride", "num_contexts", "search_steps", "buffer_size"],
    do_not_specialize_on_alignment=PLAN_ROWS,
)
def gather_latents_kernel(
    out,
    latents,
    lookup_table,
    buffer_row_offsets,
    cache_offsets,
    buffer_length,
    lookup_stride,
    num_contexts,
    search_steps,
    buffer_size,
    WIDTH: tl.constexpr,
    LATENT: tl.constexpr,
    LATENT_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy the chunk's latents from their pages, and zeros behind them. Grid (row tiles,)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_key = row < tl.load(buffer_length)
    # The last context that starts at or before the row: those without rows start where it does.
    context = tl.zeros([BLOCK], tl.int32)
    after = tl.zeros([BLOCK], tl.int32) + num_contexts
    for _ in range(search_steps):
        middle = (context + after) // 2
        is_left = tl.load(buffer_row_offsets + middle) > row
        after = tl.where(is_left, middle, after)
        context = tl.where(is_left, context, middle)
    key = tl.load(cache_offsets + context) + row - tl.load(buffer_row_offsets + context)
    pages = lookup_table + context.to(tl.int64) * lookup_stride
    page = tl.load(pages + key // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
    source = (page * PAGE_SIZE + key % PAGE_SIZE) * WIDTH
    tile = load_columns(latents, source, is_key, LATENT, LATENT_PADDED)
    column = tl.arange(0, LATENT_PADDED)
    tl.store(
        out + row.to(tl.int64)[:, None] * LATENT + column[None, :],
        tile,
        mask=(row < buffer_size)[:, None] & (column < LATENT)[None, :],
    )


def flare_mla_decompress_k_cache_triton(
    latent_cache: torch.Tensor,
    lookup_table: torch.Tensor,
    buffer_row_offsets_1d: torch.Tensor,
    cache_offsets_1d: torch.Tensor,
    buffer_length: torch.Tensor,
    weight: torch.Tensor,
    buffer_size: int,
) -> torch.Tensor:
    """As `flare_mla_decompress_k_cache`."""
    _, page_size, width = latent_cache.shape
    contexts, latent_dim = lookup_table.shape[0], weight.shape[1]
    gathered = latent_cache.new_empty(buffer_size, latent_dim)
    gather_latents_kernel[(triton.cdiv(buffer_size, GATHERED_ROWS),)](
        gathered,
        latent_cache,
        lookup_table,
        buffer_row_offsets_1d,
        cache_offsets_1d,
        buffer_length,
        lookup_table.stride(0),
        contexts,
        contexts.bit_length(),
        buffer_size,
        WIDTH=width,
        LATENT=latent_dim,
        LATENT_PADDED=padded(latent_dim),
        PAGE_SIZE=page_size,
        BLOCK=GATHERED_ROWS,
    )
    return linear_triton(gathered, weight)


@triton.jit(
    do_not_specialize=["lookup_stride", "num_contexts"], do_not_specialize_on_alignment=PLAN_ROWS
)
def chunk_attention_kernel(
    q,
    k,
    v,
    latents,
    out,
    softmax_info,
    prev_output,
    prev_softmax_info,
    offsets,
    cache_lengths,
    lookup_table,
    buffer_row_offsets,
    cache_offsets,
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    lookup_stride,
    num_contexts,
    num_heads,
    score_scale,
    MAIN: tl.constexpr,
    MAIN_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_PADDED: tl.constexpr,
    LATENT_WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid (token tiles, heads). With a PAGE_SIZE the rest of the keys is read from latent pages."""
    head = tl.program_id(1)
    context, first_query = find_tile(offsets, 0, num_contexts, tl.program_id(0), 1, BLOCK_M)
    first_token = tl.load(offsets + context)
    num_queries = tl.load(offsets + context + 1) - first_token
    if first_query >= num_queries:
        return
    query = first_query + tl.arange(0, BLOCK_M)
    is_row = query < num_queries
    row = (first_token + query).to(tl.int64) * num_heads + head
    q_offsets = row * (MAIN + REST)
    q_main = load_columns(q, q_offsets, is_row, MAIN, MAIN_PADDED)
    q_rest = q_main
    if REST > 0:
        q_rest = load_columns(q + MAIN, q_offsets, is_row, REST, REST_PADDED)

    cached = tl.load(cache_lengths + context)
    position = cached + query
    first_buffer_row = tl.load(buffer_row_offsets + context)
    first_key = tl.load(cache_offsets + context)
    end_key = first_key + tl.load(buffer_row_offsets + context + 1) - first_buffer_row
    last_position = cached + tl.minimum(first_query + BLOCK_M, num_queries) - 1
    # Keys count from the start of the context, in the buffer as in pages.
    skipped = (first_buffer_row - first_key).to(tl.int64)
    k_base = k + skipped * k_row_stride + head.to(tl.int64) * k_head_stride
    v_base = v + skipped * v_row_stride + head.to(tl.int64) * v_head_stride
    pages = lookup_table + context.to(tl.int64) * lookup_stride
    main = (k_base, pages, 0, k_row_stride)
    if PAGE_SIZE > 0:
        rest_base = latents + (LATENT_WIDTH - REST)
        rest = (rest_base, pages, PAGE_SIZE * LATENT_WIDTH, LATENT_WIDTH)
    else:
        rest = (k_base + MAIN, pages, 0, k_row_stride)
    state = attend(
        q_main, q_rest, tl.zeros([BLOCK_M], tl.int32), position,
        (first_key, tl.minimum(end_key, last_position + 1)),
        (main, rest, (v_base, pages, 0, v_row_stride)), score_scale,
        MAIN, REST, VALUE, VALUE_PADDED, 0, PAGE_SIZE, BLOCK_N,
    )  # fmt: skip
    column = tl.arange(0, VALUE_PADDED)
    if HAS_PREVIOUS:
        earlier = load_columns(prev_output, row * VALUE, is_row, VALUE, VALUE_PADDED)
        earlier_max = tl.load(prev_softmax_info + row * 2, mask=is_row, other=float("-inf"))
        earlier_sum = tl.load(prev_softmax_info + row * 2 + 1, mask=is_row, other=0.0)
        acc = earlier.to(tl.float32) * earlier_sum[:, None]
        state = merge_states((earlier_max, earlier_sum, acc), state)
    tl.store(softmax_info + row * 2, state[0], mask=is_row)
    tl.store(softmax_info + row * 2 + 1, state[1], mask=is_row)
    tl.store(
        out + row[:, None] * VALUE + column[None, :],
        normalized(state).to(out.dtype.element_ty),
        mask=is_row[:, None] & (column < VALUE)[None, :],
    )


def flare_mla_prefill_ragged_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: RaggedBatch,
    buffer_row_offsets: torch.Tensor,
    cache_offsets: torch.Tensor,
    *,
    scale: float,
    latent_cache: torch.Tensor | None = None,
    qk_rope_dim: int = 64,
    prev_output: torch.Tensor | None = None,
    prev_softmax_info: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `flare_mla_prefill_ragged`."""
    tokens, heads, head_dim = q.shape
    value_dim, contexts = v.shape[2], len(batch.query_lengths)
    out = q.new_empty(tokens, heads, value_dim, dtype=output_dtype or q.dtype)
    softmax_info = q.new_empty(tokens, heads, 2, dtype=torch.float32)
    if latent_cache is None:
        head = head_parts(head_dim)
    else:
        head = parts(head_dim - qk_rope_dim, qk_rope_dim)
    tile = attention_tile(key_columns(head) + padded(value_dim), q.dtype)
    if tokens:
        chunk_attention_kernel[(tokens // tile["BLOCK_M"] + contexts, heads)](
            q,
            k,
            v,
            k if latent_cache is None else latent_cache,
            out,
            softmax_info,
            out if prev_output is None else prev_output,
            softmax_info if prev_softmax_info is None else prev_softmax_info,
            batch.input_row_offsets,
            batch.cache_lengths,
            batch.lookup_table,
            buffer_row_offsets,
            cache_offsets,
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            batch.lookup_table.stride(0),
            contexts,
            heads,
            scale * LOG2_E,
            VALUE=value_dim,
            VALUE_PADDED=padded(value_dim),
            LATENT_WIDTH=0 if latent_cache is None else latent_cache.shape[2],
            PAGE_SIZE=0 if latent_cache is None else latent_cache.shape[1],
            HAS_PREVIOUS=prev_output is not None,
            **head,
            **tile,
        )
    return out, softmax_info

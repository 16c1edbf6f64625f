"""Triton attention over paged latents, exact per row.

All heads of a token read the same latents. So the rows of a tile are tokens x heads, as they lie
in memory, and a tile of latents is loaded once, as keys and as values.

As in `flash_attention_ragged`, keys are cut at multiples of SPLIT_KEYS, a split is an online softmax
from an empty state, and splits are merged one by one in key order: a program of the prefill kernel
walks all splits of its rows, one of the decode kernel does one split and stores its state for
`combine_kernel`. Both kernels have the same tile and warps and do not contract multiply and add,
so a row has the same bits either way.

A tile has 16 rows: beside two accumulators of 512 columns, one of the split and one of the splits
before it, every warp holds the queries of all its rows in registers.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from quire.kernels.flash_attention_gpu.kernel import attend, find_tile, load_columns, normalized
from quire.kernels.flash_attention_gpu.tiles import LOG2_E, padded, parts
from quire.kernels.flash_attention_ragged.kernel import combine_kernel, plan_decode_triton
from quire.kernels.flash_attention_ragged.splits import SPLIT_KEYS, count_splits
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.triton_helpers import merge_states

COMBINED_HEADS = 4


@triton.jit
def load_queries(
    q,
    first_row,
    row,
    is_row,
    MAIN: tl.constexpr,
    MAIN_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
):
    """The latent and the rope part of some rows of q."""
    base = q + first_row * (MAIN + REST)
    offsets = row * (MAIN + REST)
    return (
        load_columns(base, offsets, is_row, MAIN, MAIN_PADDED),
        load_columns(base + MAIN, offsets, is_row, REST, REST_PADDED),
    )


@triton.jit
def latent_sources(
    latents, lookup_table, lookup_stride, context, WIDTH: tl.constexpr, MAIN: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    """Where `attend` finds both parts of a context's keys; the values are the main part."""
    pages = lookup_table + context.to(tl.int64) * lookup_stride
    main = (latents, pages, PAGE_SIZE * WIDTH, WIDTH)
    return main, (latents + MAIN, pages, PAGE_SIZE * WIDTH, WIDTH), main


@triton.jit(do_not_specialize=["lookup_stride", "first_context", "last_context"])
def latent_prefill_kernel(
    q,
    latents,
    out,
    offsets,
    cache_lengths,
    lookup_table,
    lookup_stride,
    first_context,
    last_context,
    score_scale,
    HEADS: tl.constexpr,
    MAIN: tl.constexpr,
    MAIN_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """Grid (row tiles,). Rows of a tile are tokens x heads of one context."""
    # Late tiles have the most keys: started first, they leave no tail.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    context, first_row = find_tile(offsets, first_context, last_context, tile, HEADS, BLOCK_M)
    first_token = tl.load(offsets + context)
    num_rows = (tl.load(offsets + context + 1) - first_token) * HEADS
    if first_row >= num_rows:
        return
    row = tl.arange(0, BLOCK_M)
    is_row = first_row + row < num_rows
    position = tl.load(cache_lengths + context) + (first_row + row) // HEADS
    end = tl.max(tl.where(is_row, position, 0)) + 1
    base = first_token.to(tl.int64) * HEADS + first_row
    q_main, q_rest = load_queries(q, base, row, is_row, MAIN, MAIN_PADDED, REST, REST_PADDED)
    sources = latent_sources(
        latents, lookup_table, lookup_stride, context, MAIN + REST, MAIN, PAGE_SIZE
    )
    total = (
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.zeros([BLOCK_M, MAIN_PADDED], tl.float32),
    )
    lowest = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, end, SPLIT_KEYS):
        span = (start, tl.minimum(start + SPLIT_KEYS, end))
        state = attend(
            q_main, q_rest, lowest, position, span, sources, score_scale,
            MAIN, REST, 0, MAIN_PADDED, PAGE_SIZE, PAGE_SIZE, BLOCK_N,
        )  # fmt: skip
        total = merge_states(total, state)
    column = tl.arange(0, MAIN_PADDED)
    tl.store(
        out + base * MAIN + row[:, None] * MAIN + column[None, :],
        normalized(total).to(out.dtype.element_ty),
        mask=is_row[:, None] & (column < MAIN)[None, :],
    )


@triton.jit(do_not_specialize=["lookup_stride", "num_contexts"])
def latent_decode_kernel(
    q,
    latents,
    partial_acc,
    partial_max,
    partial_sum,
    plan,
    cache_lengths,
    lookup_table,
    lookup_stride,
    num_contexts,
    score_scale,
    HEADS: tl.constexpr,
    MAIN: tl.constexpr,
    MAIN_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """Grid (head tiles, splits of all contexts). Tiles of one split run together: L2 has its keys."""
    flat_split = tl.program_id(1)
    if flat_split >= tl.load(plan + num_contexts):
        return
    context = tl.full([], 0, tl.int32)
    after = num_contexts
    while after - context > 1:
        middle = (context + after) // 2
        is_left = tl.load(plan + middle) > flat_split
        after = tl.where(is_left, middle, after)
        context = tl.where(is_left, context, middle)
    start = (flat_split - tl.load(plan + context)) * SPLIT_KEYS
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < HEADS
    last_position = tl.load(cache_lengths + context)
    # A decode context has one token, so its token has its number.
    base = context.to(tl.int64) * HEADS
    q_main, q_rest = load_queries(q, base, row, is_row, MAIN, MAIN_PADDED, REST, REST_PADDED)
    sources = latent_sources(
        latents, lookup_table, lookup_stride, context, MAIN + REST, MAIN, PAGE_SIZE
    )
    position = last_position + tl.zeros([BLOCK_M], tl.int32)
    span = (start, tl.minimum(start + SPLIT_KEYS, last_position + 1))
    state_max, state_sum, acc = attend(
        q_main, q_rest, tl.zeros([BLOCK_M], tl.int32), position, span, sources, score_scale,
        MAIN, REST, 0, MAIN_PADDED, PAGE_SIZE, PAGE_SIZE, BLOCK_N,
    )  # fmt: skip
    column = tl.arange(0, MAIN_PADDED)
    state = flat_split.to(tl.int64) * HEADS
    tl.store(partial_max + state + row, state_max, mask=is_row)
    tl.store(partial_sum + state + row, state_sum, mask=is_row)
    tl.store(
        partial_acc + state * MAIN + row[:, None] * MAIN + column[None, :],
        acc,
        mask=is_row[:, None] & (column < MAIN)[None, :],
    )


def latent_tile(dtype: torch.dtype) -> dict[str, int]:
    """Tile of both kernels. float32 operands are split into parts, which take registers.

    A page id is loaded before its latents: seven stages keep latents of two blocks under way.
    """
    if dtype == torch.float32:
        return {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 7}


def flare_mla_decode_ragged_triton(
    q_THD: torch.Tensor,
    latent_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    qk_rope_dim: int = 64,
    decode_plan: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `flare_mla_decode_ragged`."""
    tokens, heads, width = q_THD.shape
    out = q_THD.new_empty(tokens, heads, width - qk_rope_dim)
    decode, contexts = batch.num_decode, len(batch.query_lengths)
    arguments: dict[str, Any] = {
        "q": q_THD,
        "latents": latent_cache,
        "cache_lengths": batch.cache_lengths,
        "lookup_table": batch.lookup_table,
        "lookup_stride": batch.lookup_table.stride(0),
        "score_scale": scale * LOG2_E,
        "HEADS": heads,
        "PAGE_SIZE": latent_cache.shape[1],
        "SPLIT_KEYS": SPLIT_KEYS,
        "enable_fp_fusion": False,
        **parts(width - qk_rope_dim, qk_rope_dim),
        **latent_tile(q_THD.dtype),
    }
    if decode:
        plan = plan_decode_triton(batch) if decode_plan is None else decode_plan
        _decode(arguments, out, plan, count_splits(batch.kv_lengths[:decode]))
    if contexts > decode:
        tiles = (tokens - decode) * heads // arguments["BLOCK_M"] + contexts - decode
        latent_prefill_kernel[(tiles,)](
            out=out,
            offsets=batch.input_row_offsets,
            first_context=decode,
            last_context=contexts,
            **arguments,
        )
    return out


def _decode(arguments: dict[str, Any], out: torch.Tensor, plan: torch.Tensor, splits: int) -> None:
    """Decode rows of a step whose contexts have at most `splits` splits in all."""
    _, heads, latent = out.shape
    contexts = plan.shape[0] - 1
    acc = out.new_empty(splits, heads, latent, dtype=torch.float32)
    partial = (acc, torch.empty_like(acc[..., 0]), torch.empty_like(acc[..., 0]))
    latent_decode_kernel[(triton.cdiv(heads, arguments["BLOCK_M"]), splits)](
        partial_acc=partial[0],
        partial_max=partial[1],
        partial_sum=partial[2],
        plan=plan,
        num_contexts=contexts,
        **arguments,
    )
    combine_kernel[(contexts, triton.cdiv(heads, COMBINED_HEADS))](
        *partial,
        out=out,
        sinks=acc,
        plan=plan,
        num_heads=heads,
        value_scale=1.0,
        HEAD_DIM=latent,
        HEAD_DIM_PADDED=padded(latent),
        HAS_SINKS=False,
        BLOCK_H=COMBINED_HEADS,
        enable_fp_fusion=False,
    )

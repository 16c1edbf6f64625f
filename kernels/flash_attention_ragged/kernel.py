"""Triton attention over pages, exact per row.

The keys of a context are cut at multiples of SPLIT_KEYS; a split is an online softmax over key
blocks of fixed size from an empty state, and splits are merged one by one in key order. A prefill
program walks and merges all splits of its rows; a decode program does one split at a time and
stores the state, and a third kernel merges the stored states with the same function. Merging into
an empty state is exact, and so is a block or split in which every key of a row is masked, hence
both ways give a row the same bits whatever tile it is in.

This needs one shape of instructions and no contraction of multiply and add that could differ
between the kernels: a warp has the same rows x keys of every product in both (128 rows and 8 warps
beside 64 rows and 4 warps), and FP fusion is off. 64 rows let Hopper use wgmma for decode too,
which is bound by memory long before these rows cost anything.

Decode walks a list of (context, split) x kv head with a grid that fits the chip, so that it costs
what its keys cost however they are spread over contexts. The list is the running total of splits
per context (`plan_decode`), made on the device: a captured graph serves later steps as well.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from quire.kernels.flash_attention_ragged.splits import SPLIT_KEYS, count_splits
from quire.kernels.flash_attention_ragged.tiles import decode_programs, tile_sizes
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.triton_helpers import attend_split, finished, merge_states

LOG2_E = 1.4426950408889634


@triton.jit
def _find_context(offsets, first, last, tile, BLOCK_Q: tl.constexpr):
    """The context in [first, last) that owns query tile `tile`, and its first tile.

    Context i starts at tile offset_i // BLOCK_Q + (i - first): an upper bound that needs no scan.
    """
    base = tl.load(offsets + first)
    low = first
    high = last
    while high - low > 1:
        middle = (low + high) // 2
        start = (tl.load(offsets + middle) - base) // BLOCK_Q + middle - first
        is_left = start > tile
        high = tl.where(is_left, middle, high)
        low = tl.where(is_left, low, middle)
    return low, (tl.load(offsets + low) - base) // BLOCK_Q + low - first


@triton.jit(do_not_specialize=["lookup_stride", "first_context", "last_context"])
def prefill_kernel(
    q,
    k_cache,
    v_cache,
    out,
    sinks,
    offsets,
    cache_lengths,
    lookup_table,
    lookup_stride,
    first_context,
    last_context,
    num_heads,
    num_kv_heads,
    score_scale,
    score_cap,
    value_scale,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """Grid (query tiles, kv heads). Rows of a tile are tokens x the query heads of one kv head."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP_PADDED
    # Late tiles have the most keys: started first, they leave no tail.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    context, first_tile = _find_context(offsets, first_context, last_context, tile, BLOCK_Q)
    first_query = (tile - first_tile) * BLOCK_Q
    first_token = tl.load(offsets + context)
    num_queries = tl.load(offsets + context + 1) - first_token
    if first_query >= num_queries:
        return
    first_position = tl.load(cache_lengths + context) + first_query
    last_position = first_position + tl.minimum(BLOCK_Q, num_queries - first_query) - 1
    first_split = 0
    if WINDOW > 0:
        first_split = tl.maximum(first_position - WINDOW + 1, 0) // SPLIT_KEYS

    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HEAD_DIM_PADDED)
    query = rows // GROUP_PADDED
    head = kv_head * GROUP + rows % GROUP_PADDED
    is_row = (first_query + query < num_queries) & (rows % GROUP_PADDED < GROUP)
    # Tile offsets stay 32-bit beside a 64-bit base: they are held in registers to the end.
    base = (first_token + first_query).to(tl.int64) * num_heads * HEAD_DIM
    row_offsets = (query * num_heads + head)[:, None] * HEAD_DIM + columns[None, :]
    row_mask = is_row[:, None] & (columns < HEAD_DIM)[None, :]
    q_tile = tl.load(q + base + row_offsets, mask=row_mask, other=0.0)

    pages = lookup_table + context.to(tl.int64) * lookup_stride
    paged = (k_cache, v_cache, pages, kv_head, num_kv_heads)
    total = (
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.zeros([BLOCK_M, HEAD_DIM_PADDED], tl.float32),
    )
    for split in range(first_split, last_position // SPLIT_KEYS + 1):
        state = attend_split(
            q_tile,
            first_position + query,
            (first_position, last_position),
            split,
            paged,
            (score_scale, score_cap),
            HEAD_DIM,
            PAGE_SIZE,
            WINDOW,
            HAS_CAP,
            BLOCK_N,
            SPLIT_KEYS,
        )
        total = merge_states(total, state)
    result = finished(total, sinks, head, is_row, value_scale, out.dtype.element_ty, HAS_SINKS)
    tl.store(out + base + row_offsets, result, mask=row_mask)


@triton.jit(do_not_specialize=["num_contexts"])
def plan_kernel(plan, cache_lengths, num_contexts, WINDOW: tl.constexpr, SPLIT_KEYS: tl.constexpr):
    """One program: plan[i] is the number of splits of the decode contexts before i."""
    BLOCK: tl.constexpr = 1024
    tl.store(plan, 0)
    total = 0
    for start in range(0, num_contexts, BLOCK):
        context = start + tl.arange(0, BLOCK)
        is_context = context < num_contexts
        position = tl.load(cache_lengths + context, mask=is_context, other=0)
        first_key = position * 0
        if WINDOW > 0:
            first_key = tl.maximum(position - WINDOW + 1, 0)
        splits = position // SPLIT_KEYS - first_key // SPLIT_KEYS + 1
        splits = tl.where(is_context, splits, 0)
        tl.store(plan + context + 1, total + tl.cumsum(splits), mask=is_context)
        total += tl.sum(splits)


@triton.jit(do_not_specialize=["lookup_stride", "num_contexts"])
def decode_kernel(
    q,
    k_cache,
    v_cache,
    partial_acc,
    partial_max,
    partial_sum,
    plan,
    cache_lengths,
    lookup_table,
    lookup_stride,
    num_contexts,
    num_kv_heads,
    score_scale,
    score_cap,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """Programs walk (context, split) x kv head; rows are the query heads of one kv head."""
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HEAD_DIM_PADDED)
    is_row = rows < GROUP
    row_offsets = rows[:, None] * HEAD_DIM + columns[None, :]
    row_mask = is_row[:, None] & (columns < HEAD_DIM)[None, :]
    num_items = tl.load(plan + num_contexts) * num_kv_heads
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        flat_split = item // num_kv_heads
        kv_head = item % num_kv_heads
        context = tl.full([], 0, tl.int32)
        end = num_contexts
        while end - context > 1:
            middle = (context + end) // 2
            is_left = tl.load(plan + middle) > flat_split
            end = tl.where(is_left, middle, end)
            context = tl.where(is_left, context, middle)
        position = tl.load(cache_lengths + context)
        split = flat_split - tl.load(plan + context)
        if WINDOW > 0:
            split += tl.maximum(position - WINDOW + 1, 0) // SPLIT_KEYS
        # A decode context has one token, so its token has its number.
        first_row = (context.to(tl.int64) * num_kv_heads + kv_head) * GROUP
        q_tile = tl.load(q + first_row * HEAD_DIM + row_offsets, mask=row_mask, other=0.0)
        pages = lookup_table + context.to(tl.int64) * lookup_stride
        state_max, state_sum, acc = attend_split(
            q_tile,
            position + tl.zeros([BLOCK_M], tl.int32),
            (position, position),
            split,
            (k_cache, v_cache, pages, kv_head, num_kv_heads),
            (score_scale, score_cap),
            HEAD_DIM,
            PAGE_SIZE,
            WINDOW,
            HAS_CAP,
            BLOCK_N,
            SPLIT_KEYS,
        )
        first_state = (flat_split.to(tl.int64) * num_kv_heads + kv_head) * GROUP
        tl.store(partial_max + first_state + rows, state_max, mask=is_row)
        tl.store(partial_sum + first_state + rows, state_sum, mask=is_row)
        tl.store(partial_acc + first_state * HEAD_DIM + row_offsets, acc, mask=row_mask)


@triton.jit
def combine_kernel(
    partial_acc,
    partial_max,
    partial_sum,
    out,
    sinks,
    plan,
    num_heads,
    value_scale,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Merge a decode token's split states in key order. Grid (decode contexts, head blocks)."""
    context = tl.program_id(0)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    columns = tl.arange(0, HEAD_DIM_PADDED)
    is_head = head < num_heads
    mask = is_head[:, None] & (columns < HEAD_DIM)[None, :]
    total = (
        tl.full([BLOCK_H], float("-inf"), tl.float32),
        tl.zeros([BLOCK_H], tl.float32),
        tl.zeros([BLOCK_H, HEAD_DIM_PADDED], tl.float32),
    )
    # Staged: a long context has many splits, and each would wait for memory.
    for split in tl.range(tl.load(plan + context), tl.load(plan + context + 1), num_stages=4):
        row = (split * num_heads + head).to(tl.int64)
        state_max = tl.load(partial_max + row, mask=is_head, other=float("-inf"))
        state_sum = tl.load(partial_sum + row, mask=is_head, other=0.0)
        offsets = row[:, None] * HEAD_DIM + columns[None, :]
        acc = tl.load(partial_acc + offsets, mask=mask, other=0.0)
        total = merge_states(total, (state_max, state_sum, acc))
    result = finished(total, sinks, head, is_head, value_scale, out.dtype.element_ty, HAS_SINKS)
    row = context.to(tl.int64) * num_heads + head
    tl.store(out + row[:, None] * HEAD_DIM + columns[None, :], result, mask=mask)


def plan_decode_triton(batch: RaggedBatch, *, sliding_window: int | None = None) -> torch.Tensor:
    """As `plan_decode`, on a GPU (or in Triton's interpreter, on CPU tensors)."""
    plan = batch.cache_lengths.new_empty(batch.num_decode + 1)
    plan_kernel[(1,)](
        plan,
        batch.cache_lengths,
        batch.num_decode,
        WINDOW=sliding_window or 0,
        SPLIT_KEYS=SPLIT_KEYS,
    )
    return plan


def flash_attention_ragged_triton(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    decode_plan: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `flash_attention_ragged`, on a GPU (or in Triton's interpreter, on CPU tensors)."""
    _, heads, head_dim = q_THD.shape
    _, kv_heads, page_size, _ = k_cache.shape
    decode = batch.num_decode
    out_THD = torch.empty_like(q_THD)
    shared, prefill_tile, decode_tile = tile_sizes(heads, kv_heads, head_dim, q_THD.dtype)
    if k_cache.dtype == torch.float8_e4m3fn:
        # As codes: GPUs without fp8 have no such type.
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    arguments = shared | {
        "q": q_THD,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "cache_lengths": batch.cache_lengths,
        "lookup_table": batch.lookup_table,
        "lookup_stride": batch.lookup_table.stride(0),
        "num_kv_heads": kv_heads,
        "score_scale": scale * k_scale * LOG2_E * (2 / soft_cap if soft_cap else 1),
        "score_cap": (soft_cap or 0.0) * LOG2_E,
        "PAGE_SIZE": page_size,
        "WINDOW": sliding_window or 0,
        "HAS_CAP": soft_cap is not None,
        "enable_fp_fusion": False,
    }
    ending = {
        "out": out_THD,
        "sinks": q_THD if sinks is None else sinks,
        "num_heads": heads,
        "value_scale": v_scale,
        "HAS_SINKS": sinks is not None,
    }
    if decode:
        if decode_plan is None:
            decode_plan = plan_decode_triton(batch, sliding_window=sliding_window)
        most_splits = count_splits(batch.kv_lengths[:decode], sliding_window)
        _decode(arguments | decode_tile, ending, decode_plan, most_splits)
    if len(batch.query_lengths) > decode:
        _prefill(arguments | ending | prefill_tile, batch)
    return out_THD


def _prefill(arguments: dict[str, Any], batch: RaggedBatch) -> None:
    """Attention of the rows after the decode rows."""
    contexts = len(batch.query_lengths) - batch.num_decode
    block_tokens = arguments["BLOCK_M"] // arguments["GROUP_PADDED"]
    tiles = (batch.num_tokens - batch.num_decode) // block_tokens + contexts
    prefill_kernel[(tiles, arguments["num_kv_heads"])](
        offsets=batch.input_row_offsets,
        first_context=batch.num_decode,
        last_context=batch.num_decode + contexts,
        **arguments,
    )


def _decode(
    arguments: dict[str, Any], ending: dict[str, Any], plan: torch.Tensor, most_splits: int
) -> None:
    """Attention of the decode rows; `plan` has at most `most_splits` splits in all."""
    q_THD, heads, kv_heads = arguments["q"], ending["num_heads"], arguments["num_kv_heads"]
    contexts, head_dim = plan.shape[0] - 1, q_THD.shape[2]
    acc = q_THD.new_empty(most_splits, heads, head_dim, dtype=torch.float32)
    partial = (acc, torch.empty_like(acc[..., 0]), torch.empty_like(acc[..., 0]))
    programs = min(decode_programs(q_THD.device), most_splits * kv_heads)
    decode_kernel[(programs,)](
        partial_acc=partial[0],
        partial_max=partial[1],
        partial_sum=partial[2],
        plan=plan,
        num_contexts=contexts,
        **arguments,
    )
    block_heads = min(4, triton.next_power_of_2(heads))
    combine_kernel[(contexts, triton.cdiv(heads, block_heads))](
        *partial,
        plan=plan,
        **ending,
        HEAD_DIM=head_dim,
        HEAD_DIM_PADDED=arguments["HEAD_DIM_PADDED"],
        BLOCK_H=block_heads,
        enable_fp_fusion=False,
    )

"""Triton attention over pages, exact per row.

One body serves prefill and decode. The keys of a context are cut at multiples of SPLIT_KEYS; a
split is an online softmax over key blocks of fixed size from an empty state, and splits are
merged one by one in key order. A prefill program walks and merges all splits of its rows; a
decode program does one split and stores the state, and a second kernel merges the stored states
with the same function. Merging into an empty state is exact, and so is a block or split in which
every key of a row is masked, hence both ways give a row the same bits whatever tile it is in.
This needs one instruction shape and no contraction of multiply and add that could differ between
the two launches: BLOCK_M, warps and stages are the same, and FP fusion is off. 64 rows let Hopper
use wgmma for both; decode is bound by memory long before these rows cost anything.
"""

import torch
import triton
import triton.language as tl

from quire.kernels.ragged_batch import RaggedBatch

SPLIT_KEYS = 512
BLOCK_M = 64
LOG2_E = 1.4426950408889634


@triton.jit
def _merge(max_a, sum_a, acc_a, max_b, sum_b, acc_b):
    """Merge two softmax states, the later one second; exact when one of them is empty."""
    top = tl.maximum(max_a, max_b)
    safe = tl.where(top == float("-inf"), 0.0, top)
    scale_a = tl.exp2(max_a - safe)
    scale_b = tl.exp2(max_b - safe)
    acc = acc_a * scale_a[:, None] + acc_b * scale_b[:, None]
    return top, sum_a * scale_a + sum_b * scale_b, acc


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


@triton.jit(do_not_specialize=["lookup_stride", "first_context", "last_context", "num_splits"])
def attention_kernel(
    q,
    k_cache,
    v_cache,
    out,
    partial_acc,
    partial_max,
    partial_sum,
    offsets,
    cache_lengths,
    lookup_table,
    lookup_stride,
    first_context,
    last_context,
    num_splits,
    num_heads,
    num_kv_heads,
    score_scale,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    IS_DECODE: tl.constexpr,
):
    """Grid (query tiles, kv heads, splits of a decode launch or 1).

    Rows of a tile are tokens x the query heads of one kv head. `score_scale` includes log2(e)."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP_PADDED
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    if IS_DECODE:
        context = first_context + tile
        first_query = 0
    else:
        context, first_tile = _find_context(offsets, first_context, last_context, tile, BLOCK_Q)
        first_query = (tile - first_tile) * BLOCK_Q
    first_token = tl.load(offsets + context)
    num_queries = tl.load(offsets + context + 1) - first_token
    if first_query >= num_queries:
        return
    first_position = tl.load(cache_lengths + context) + first_query
    last_position = first_position + tl.minimum(BLOCK_Q, num_queries - first_query) - 1

    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(first_position - WINDOW + 1, 0)
    first_split = first_key // SPLIT_KEYS
    end_split = last_position // SPLIT_KEYS + 1
    if IS_DECODE:
        split = tl.program_id(2)
        if (split < first_split) | (split >= end_split):
            return
        first_split = split
        end_split = split + 1

    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HEAD_DIM_PADDED)
    query = rows // GROUP_PADDED
    head = kv_head * GROUP + rows % GROUP_PADDED
    is_row = (first_query + query < num_queries) & (rows % GROUP_PADDED < GROUP)
    position = first_position + query
    # Tile offsets stay 32-bit beside a 64-bit base: they are held in registers to the end.
    base = (first_token + first_query).to(tl.int64) * num_heads
    row = query * num_heads + head
    row_offsets = row[:, None] * HEAD_DIM + columns[None, :]
    is_column = columns < HEAD_DIM
    row_mask = is_row[:, None] & is_column[None, :]
    q_tile = tl.load(q + base * HEAD_DIM + row_offsets, mask=row_mask, other=0.0)

    pages = lookup_table + context.to(tl.int64) * lookup_stride
    total_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total_sum = tl.zeros([BLOCK_M], tl.float32)
    total_acc = tl.zeros([BLOCK_M, HEAD_DIM_PADDED], tl.float32)
    for split in range(first_split, end_split):
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD_DIM_PADDED], tl.float32)
        start = tl.maximum(split * SPLIT_KEYS, first_key // BLOCK_N * BLOCK_N)
        end = tl.minimum((split + 1) * SPLIT_KEYS, last_position + 1)
        for block in range(start, end, BLOCK_N):
            keys = block + tl.arange(0, BLOCK_N)
            is_key = (keys >= first_key) & (keys <= last_position)
            page = tl.load(pages + keys // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
            key_row = (page * num_kv_heads + kv_head) * PAGE_SIZE + keys % PAGE_SIZE
            kv_offsets = key_row[:, None] * HEAD_DIM + columns[None, :]
            kv_mask = is_key[:, None] & is_column[None, :]
            # Loaded as zero where masked: stale memory may hold NaN, and 0 * NaN is NaN.
            k_tile = tl.load(k_cache + kv_offsets, mask=kv_mask, other=0.0)
            v_tile = tl.load(v_cache + kv_offsets, mask=kv_mask, other=0.0)
            scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="tf32x3") * score_scale
            distance = position[:, None] - keys[None, :]
            visible = (distance >= 0) & is_row[:, None]
            if WINDOW > 0:
                visible &= distance < WINDOW
            scores = tl.where(visible, scores, float("-inf"))
            top = tl.maximum(row_max, tl.max(scores, 1))
            safe = tl.where(top == float("-inf"), 0.0, top)
            weights = tl.exp2(scores - safe[:, None])
            decay = tl.exp2(row_max - safe)
            row_sum = row_sum * decay + tl.sum(weights, 1)
            weights = weights.to(v_tile.dtype)
            acc = tl.dot(weights, v_tile, acc * decay[:, None], input_precision="tf32x3")
            row_max = top
        total_max, total_sum, total_acc = _merge(
            total_max, total_sum, total_acc, row_max, row_sum, acc
        )

    if IS_DECODE:
        state = (base + row) * num_splits + tl.program_id(2)
        state_offsets = state[:, None] * HEAD_DIM + columns[None, :]
        tl.store(partial_max + state, total_max, mask=is_row)
        tl.store(partial_sum + state, total_sum, mask=is_row)
        tl.store(partial_acc + state_offsets, total_acc, mask=row_mask)
    else:
        result = total_acc / tl.where(is_row, total_sum, 1.0)[:, None]
        tl.store(
            out + base * HEAD_DIM + row_offsets, result.to(out.dtype.element_ty), mask=row_mask
        )


@triton.jit(do_not_specialize=["num_splits"])
def combine_kernel(
    partial_acc,
    partial_max,
    partial_sum,
    out,
    cache_lengths,
    num_splits,
    num_heads,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """Merge a decode token's split states in key order. Grid (decode contexts, head blocks)."""
    context = tl.program_id(0)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    columns = tl.arange(0, HEAD_DIM_PADDED)
    is_head = head < num_heads
    mask = is_head[:, None] & (columns < HEAD_DIM)[None, :]
    row_index = context.to(tl.int64) * num_heads + head
    position = tl.load(cache_lengths + context)
    first_split = 0
    if WINDOW > 0:
        first_split = tl.maximum(position - WINDOW + 1, 0) // SPLIT_KEYS
    total_max = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total_sum = tl.zeros([BLOCK_H], tl.float32)
    total_acc = tl.zeros([BLOCK_H, HEAD_DIM_PADDED], tl.float32)
    for split in range(first_split, position // SPLIT_KEYS + 1):
        state = row_index * num_splits + split
        row_max = tl.load(partial_max + state, mask=is_head, other=float("-inf"))
        row_sum = tl.load(partial_sum + state, mask=is_head, other=0.0)
        acc_offsets = state[:, None] * HEAD_DIM + columns[None, :]
        acc = tl.load(partial_acc + acc_offsets, mask=mask, other=0.0)
        total_max, total_sum, total_acc = _merge(
            total_max, total_sum, total_acc, row_max, row_sum, acc
        )
    result = total_acc / tl.where(is_head, total_sum, 1.0)[:, None]
    out_offsets = row_index[:, None] * HEAD_DIM + columns[None, :]
    tl.store(out + out_offsets, result.to(out.dtype.element_ty), mask=mask)


def attention_constants(
    heads: int, kv_heads: int, head_dim: int, page_size: int, element_size: int
) -> dict[str, int]:
    """The constants of `attention_kernel` that the model fixes: both launches must share them."""
    group_padded = triton.next_power_of_2(heads // kv_heads)
    padded = max(16, triton.next_power_of_2(head_dim))
    # Shared memory holds two stages of key and value tiles; a float32 dot also needs registers
    # for the parts it splits its operands into.
    most_keys = 64 if element_size == 2 else 32
    return {
        "GROUP": heads // kv_heads,
        "GROUP_PADDED": group_padded,
        "HEAD_DIM": head_dim,
        "HEAD_DIM_PADDED": padded,
        "PAGE_SIZE": page_size,
        "BLOCK_M": max(BLOCK_M, group_padded),
        "BLOCK_N": min(most_keys, 16384 // (padded * element_size)),
        "SPLIT_KEYS": SPLIT_KEYS,
    }


def flash_attention_ragged_triton(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """As `flash_attention_ragged`, on a GPU (or in Triton's interpreter, on CPU tensors)."""
    num_tokens, heads, head_dim = q_THD.shape
    _, kv_heads, page_size, _ = k_cache.shape
    constants = attention_constants(heads, kv_heads, head_dim, page_size, q_THD.element_size())
    constants["WINDOW"] = sliding_window or 0
    decode, contexts = batch.num_decode, len(batch.query_lengths)
    out_THD = torch.empty_like(q_THD)

    def attend(rows: range, tiles: int, partial: tuple[torch.Tensor, ...], is_decode: bool) -> None:
        splits = partial[0].shape[2]
        attention_kernel[(tiles, kv_heads, splits)](
            q_THD,
            k_cache,
            v_cache,
            out_THD,
            *partial,
            batch.input_row_offsets,
            batch.cache_lengths,
            batch.lookup_table,
            batch.lookup_table.stride(0),
            rows.start,
            rows.stop,
            splits,
            heads,
            kv_heads,
            scale * LOG2_E,
            **constants,
            IS_DECODE=is_decode,
            num_warps=4 if constants["HEAD_DIM_PADDED"] * q_THD.element_size() <= 128 else 8,
            num_stages=2,
            enable_fp_fusion=False,
        )

    if decode:
        splits = triton.cdiv(max(batch.kv_lengths[:decode]), SPLIT_KEYS)
        acc = q_THD.new_empty(decode, heads, splits, head_dim, dtype=torch.float32)
        partial = (acc, torch.empty_like(acc[..., 0]), torch.empty_like(acc[..., 0]))
        attend(range(decode), decode, partial, True)
        _combine(partial, out_THD, batch, constants)
    if contexts > decode:
        tile_tokens = constants["BLOCK_M"] // constants["GROUP_PADDED"]
        tiles = (num_tokens - decode) // tile_tokens + contexts - decode
        unused = q_THD.new_empty(1, 1, 1, dtype=torch.float32)
        attend(range(decode, contexts), tiles, (unused, unused, unused), False)
    return out_THD


def _combine(
    partial: tuple[torch.Tensor, ...],
    out_THD: torch.Tensor,
    batch: RaggedBatch,
    constants: dict[str, int],
) -> None:
    decode, heads, splits, head_dim = partial[0].shape
    block_heads = min(16, triton.next_power_of_2(heads))
    combine_kernel[(decode, triton.cdiv(heads, block_heads))](
        *partial,
        out_THD,
        batch.cache_lengths,
        splits,
        heads,
        HEAD_DIM=head_dim,
        HEAD_DIM_PADDED=constants["HEAD_DIM_PADDED"],
        WINDOW=constants["WINDOW"],
        BLOCK_H=block_heads,
        SPLIT_KEYS=SPLIT_KEYS,
        enable_fp_fusion=False,
    )

"""Device functions of the attention kernels: one body for every kernel that attends.

Rows of a tile are independent, and both kernels walk the keys of a row with these functions, so
a row's bits do not depend on the kernel or the tile that computes it. What a row does not see is
an exact no-op: a masked key adds zero, and a softmax state without keys changes nothing.
"""

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq


@triton.jit
def merge_states(earlier, later):
    """Merge two softmax states (max, sum, acc); exact when one of them is empty."""
    max_a, sum_a, acc_a = earlier
    max_b, sum_b, acc_b = later
    top = tl.maximum(max_a, max_b)
    safe = tl.where(top == float("-inf"), 0.0, top)
    scale_a = tl.exp2(max_a - safe)
    scale_b = tl.exp2(max_b - safe)
    acc = acc_a * scale_a[:, None] + acc_b * scale_b[:, None]
    return top, sum_a * scale_a + sum_b * scale_b, acc


@triton.jit
def e4m3_values(codes, dtype: tl.constexpr):
    """The values of fp8 e4m3fn codes (uint8), exact in `dtype`."""
    if cuda_capability_geq(8, 9):
        values = codes.to(tl.float8e4nv, bitcast=True).to(dtype)
    else:
        # At the place of fp16's exponent and mantissa the bits mean 1/256 of the value.
        wide = codes.to(tl.uint16)
        bits = ((wide & 0x7F) << 7) | ((wide & 0x80) << 8)
        half = bits.to(tl.float16, bitcast=True) * 256.0
        values = tl.where((wide & 0x7F) == 0x7F, float("nan"), half).to(dtype)
    return values


@triton.jit
def load_rows(
    cache, offsets, is_key, dtype: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr
):
    """A tile of cache rows in `dtype`; fp8 caches come as uint8.

    Loaded as zero where masked: stale memory may hold NaN, and 0 * NaN is NaN.
    """
    columns: tl.constexpr = offsets.shape[1]
    is_column = (tl.arange(0, columns) < HEAD_DIM)[None, :]
    if MASKED:
        tile = tl.load(cache + offsets, mask=is_key[:, None] & is_column, other=0)
    elif columns != HEAD_DIM:
        tile = tl.load(cache + offsets, mask=is_column, other=0)
    else:
        tile = tl.load(cache + offsets)
    if cache.dtype.element_ty == tl.uint8:
        tile = e4m3_values(tile, dtype)
    return tile


@triton.jit
def attend_keys(
    state,
    q_tile,
    position,
    keys_seen,
    paged,
    scaling,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Continue softmax states (max, sum, acc) of rows at `position` over some key blocks.

    `keys_seen` is (start, end, first, last): blocks from `start` to `end`, of keys that some row
    sees from `first` to `last`; unless `MASKED`, every row sees every key of the blocks. `paged`
    is (k_cache, v_cache, pages, kv head, number of kv heads). `scaling` is (scale, cap): scores in
    units of log2 are scale * qk, or with a cap cap * tanh(scale * ln(2) / 2 * qk).
    """
    row_max, row_sum, acc = state
    start, end, first_key, last_key = keys_seen
    k_cache, v_cache, pages, kv_head, num_kv_heads = paged
    score_scale, score_cap = scaling
    columns = tl.arange(0, q_tile.shape[1])
    for block in range(start, end, BLOCK_N):
        keys = block + tl.arange(0, BLOCK_N)
        is_key = (keys >= first_key) & (keys <= last_key)
        if MASKED:
            page = tl.load(pages + keys // PAGE_SIZE, mask=is_key, other=0)
        else:
            page = tl.load(pages + keys // PAGE_SIZE)
        row = (page.to(tl.int64) * num_kv_heads + kv_head) * PAGE_SIZE + keys % PAGE_SIZE
        offsets = row[:, None] * HEAD_DIM + columns[None, :]
        k_tile = load_rows(k_cache, offsets, is_key, q_tile.dtype, HEAD_DIM, MASKED)
        v_tile = load_rows(v_cache, offsets, is_key, q_tile.dtype, HEAD_DIM, MASKED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="tf32x3") * score_scale
        if HAS_CAP:
            # tanh by exp2, with limits 1 and -1 where that overflows or vanishes.
            scores = score_cap * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))
        if MASKED:
            distance = position[:, None] - keys[None, :]
            visible = distance >= 0
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
    return row_max, row_sum, acc


@triton.jit
def attend_split(
    q_tile,
    position,
    positions_seen,
    split,
    paged,
    scaling,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """The softmax state of rows at `position` over one split of their keys.

    `positions_seen` is (first, last) of the rows that count; others are padding, whose state has
    no meaning. `paged` and `scaling` are as in `attend_keys`.
    """
    rows: tl.constexpr = q_tile.shape[0]
    first_position, last_position = positions_seen
    state = (
        tl.full([rows], float("-inf"), tl.float32),
        tl.zeros([rows], tl.float32),
        tl.zeros([rows, q_tile.shape[1]], tl.float32),
    )
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(first_position - WINDOW + 1, 0)
    start = tl.maximum(split * SPLIT_KEYS, first_key // BLOCK_N * BLOCK_N)
    end = tl.minimum((split + 1) * SPLIT_KEYS, last_position + 1)
    # Every row sees all keys of the blocks from whole_start to whole_end.
    whole_start = start
    if WINDOW > 0:
        common = tl.maximum(last_position - WINDOW + 1, start)
        whole_start = tl.minimum(tl.cdiv(common, BLOCK_N), tl.cdiv(end, BLOCK_N)) * BLOCK_N
        seen = (start, whole_start, first_key, last_position)
        state = attend_keys(
            state, q_tile, position, seen, paged, scaling,
            HEAD_DIM, PAGE_SIZE, WINDOW, HAS_CAP, BLOCK_N, MASKED=True,
        )  # fmt: skip
    whole_end = tl.minimum(end, first_position + 1) // BLOCK_N * BLOCK_N
    whole_end = tl.maximum(whole_end, whole_start)
    seen = (whole_start, whole_end, first_key, last_position)
    state = attend_keys(
        state, q_tile, position, seen, paged, scaling,
        HEAD_DIM, PAGE_SIZE, WINDOW, HAS_CAP, BLOCK_N, MASKED=False,
    )  # fmt: skip
    seen = (whole_end, end, first_key, last_position)
    return attend_keys(
        state, q_tile, position, seen, paged, scaling,
        HEAD_DIM, PAGE_SIZE, WINDOW, HAS_CAP, BLOCK_N, MASKED=True,
    )  # fmt: skip


@triton.jit
def finished(
    state,
    sinks,
    head,
    is_row,
    value_scale,
    dtype: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Output rows of softmax states over all keys; a sink has a weight and no value."""
    total_max, total_sum, acc = state
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=is_row, other=0.0) * 1.4426950408889634
        top = tl.maximum(total_max, sink)
        decay = tl.exp2(total_max - top)
        total_sum = total_sum * decay + tl.exp2(sink - top)
        acc = acc * decay[:, None]
    return (acc / tl.where(is_row, total_sum, 1.0)[:, None] * value_scale).to(dtype)

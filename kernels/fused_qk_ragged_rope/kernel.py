"""Triton: head norms, rotation and cache write in one pass over qkv."""

import torch
import triton
import triton.language as tl

from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.kernel import store_scaled, writable

BLOCK_H = 8
BLOCK_ROW = 1024


@triton.jit
def _load_pairs(heads, first, distance, mask, INTERLEAVED: tl.constexpr):
    """Both elements of each pair in fp32, [heads, pairs]; neighbours come in one load."""
    at = heads + first[None, :]
    if INTERLEAVED:
        both = at[:, :, None] + tl.arange(0, 2)[None, None, :]
        one, other = tl.split(tl.load(both, mask=mask[:, :, None], other=0.0))
    else:
        one = tl.load(at, mask=mask, other=0.0)
        other = tl.load(at + distance[None, :], mask=mask, other=0.0)
    return one.to(tl.float32), other.to(tl.float32)


@triton.jit
def _store_pairs(heads, first, distance, one, other, scale, mask, INTERLEAVED: tl.constexpr):
    at = heads + first[None, :]
    if INTERLEAVED:
        both = at[:, :, None] + tl.arange(0, 2)[None, None, :]
        store_scaled(both, tl.join(one, other), scale, mask[:, :, None])
    else:
        store_scaled(at, one, scale, mask)
        store_scaled(at + distance[None, :], other, scale, mask)


@triton.jit
def _row_square(row, columns, BLOCK: tl.constexpr):
    """Sum of squares of `columns` elements, in an order that depends on `columns` alone."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(row + column, mask=column < columns, other=0.0).to(tl.float32)
        total += value * value
    return tl.sum(total, 0)


@triton.jit
def _normed(
    one,
    other,
    row,
    weight,
    head,
    num_heads,
    first,
    distance,
    mask,
    epsilon,
    dtype: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    WHOLE_ROW: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
    MULTIPLY_BEFORE_CAST: tl.constexpr,
):
    """RMS norm of heads given as pairs, rounded to `dtype` where HF rounds.

    `row` is that of the token's `num_heads` heads, `head` counts among them.
    """
    if WHOLE_ROW:
        square = _row_square(row, num_heads * HEAD_DIM, BLOCK_ROW)
        inverse = 1.0 / tl.sqrt(square / (num_heads * HEAD_DIM) + epsilon)
        at = weight + head[:, None] * HEAD_DIM + first[None, :]
        one_weight = tl.load(at, mask=mask, other=0.0)
        other_weight = tl.load(at + distance[None, :], mask=mask, other=0.0)
    else:
        square = tl.sum(one * one, 1) + tl.sum(other * other, 1)
        inverse = (1.0 / tl.sqrt(square / HEAD_DIM + epsilon))[:, None]
        is_element = first + distance < HEAD_DIM
        one_weight = tl.load(weight + first, mask=is_element, other=0.0)[None, :]
        other_weight = tl.load(weight + first + distance, mask=is_element, other=0.0)[None, :]
    one *= inverse
    other *= inverse
    if not MULTIPLY_BEFORE_CAST:
        one = one.to(dtype).to(tl.float32)
        other = other.to(dtype).to(tl.float32)
    one_weight = one_weight.to(tl.float32)
    other_weight = other_weight.to(tl.float32)
    if WEIGHT_OFFSET != 0.0:
        one_weight += WEIGHT_OFFSET
        other_weight += WEIGHT_OFFSET
    one = (one * one_weight).to(dtype).to(tl.float32)
    other = (other * other_weight).to(dtype).to(tl.float32)
    return one, other


@triton.jit
def rope_kernel(
    qkv,
    cos_sin,
    q_out,
    k_cache,
    v_cache,
    q_norm,
    k_norm,
    positions,
    slots,
    epsilon,
    k_scale,
    v_scale,
    num_heads,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    WHOLE_Q_NORM: tl.constexpr,
    WHOLE_K_NORM: tl.constexpr,
    MULTIPLY_BEFORE_CAST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
):
    """Grid (tokens, groups of BLOCK_H heads among the query, key and value heads).

    A head is D / 2 pairs of elements: R / 2 that turn, then the others. `first` is where one
    element of each is, the other is `distance` behind it.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    pair = tl.arange(0, HALF_PADDED)
    is_pair = pair < HEAD_DIM // 2
    turns = pair < ROTARY_DIM // 2
    if INTERLEAVED:
        first = 2 * pair
        distance = tl.full((HALF_PADDED,), 1, tl.int32)
    elif ROTARY_DIM == HEAD_DIM:
        first = pair
        distance = tl.full((HALF_PADDED,), HEAD_DIM // 2, tl.int32)
    else:
        first = tl.where(turns, pair, pair + ROTARY_DIM // 2)
        distance = tl.where(turns, ROTARY_DIM // 2, (HEAD_DIM - ROTARY_DIM) // 2)

    is_query = (head < num_heads)[:, None] & is_pair[None, :]
    kv_head = head - num_heads
    is_key = ((kv_head >= 0) & (kv_head < num_kv_heads))[:, None] & is_pair[None, :]
    value_head = kv_head - num_kv_heads
    is_value = ((value_head >= 0) & (value_head < num_kv_heads))[:, None] & is_pair[None, :]

    row = qkv + token * (num_heads + 2 * num_kv_heads) * HEAD_DIM
    key_row = row + num_heads * HEAD_DIM
    dtype: tl.constexpr = qkv.dtype.element_ty
    is_head = is_query | is_key | is_value
    one, other = _load_pairs(row + head[:, None] * HEAD_DIM, first, distance, is_head, INTERLEAVED)

    slot = tl.load(slots + token)
    page_row = slot // PAGE_SIZE * num_kv_heads * PAGE_SIZE + slot % PAGE_SIZE
    value = v_cache + (page_row + value_head[:, None] * PAGE_SIZE) * HEAD_DIM
    _store_pairs(value, first, distance, one, other, v_scale, is_value, INTERLEAVED)

    if HAS_Q_NORM:
        normed_one, normed_other = _normed(
            one, other, row, q_norm, head, num_heads, first, distance, is_query,
            epsilon, dtype, HEAD_DIM, WEIGHT_OFFSET, WHOLE_Q_NORM, BLOCK_ROW, MULTIPLY_BEFORE_CAST,
        )  # fmt: skip
        one = tl.where(is_query, normed_one, one)
        other = tl.where(is_query, normed_other, other)
    if HAS_K_NORM:
        normed_one, normed_other = _normed(
            one, other, key_row, k_norm, kv_head, num_kv_heads, first, distance, is_key,
            epsilon, dtype, HEAD_DIM, WEIGHT_OFFSET, WHOLE_K_NORM, BLOCK_ROW, MULTIPLY_BEFORE_CAST,
        )  # fmt: skip
        one = tl.where(is_key, normed_one, one)
        other = tl.where(is_key, normed_other, other)

    angle = cos_sin + tl.load(positions + token).to(tl.int64) * ROTARY_DIM + pair
    cos = tl.load(angle, mask=turns, other=0.0)[None, :]
    sin = tl.load(angle + ROTARY_DIM // 2, mask=turns, other=0.0)[None, :]
    turned_one = one * cos - other * sin
    turned_other = other * cos + one * sin
    if ROTARY_DIM != HEAD_DIM:
        turned_one = tl.where(turns[None, :], turned_one, one)
        turned_other = tl.where(turns[None, :], turned_other, other)
    query = q_out + (token * num_heads + head[:, None]) * HEAD_DIM
    _store_pairs(query, first, distance, turned_one, turned_other, 1.0, is_query, INTERLEAVED)
    key = k_cache + (page_row + kv_head[:, None] * PAGE_SIZE) * HEAD_DIM
    _store_pairs(key, first, distance, turned_one, turned_other, k_scale, is_key, INTERLEAVED)


def fused_qk_ragged_rope_triton(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    num_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    epsilon: float = 1e-6,
    interleaved: bool = False,
    norm_weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """As `fused_qk_ragged_rope`, on a GPU (or in Triton's interpreter, on CPU tensors)."""
    _, kv_heads, page_size, head_dim = k_cache.shape
    num_tokens = qkv.shape[0]
    q_out = qkv.new_empty(num_tokens, num_heads, head_dim)
    if not num_tokens:
        return q_out
    rope_kernel[(num_tokens, triton.cdiv(num_heads + 2 * kv_heads, BLOCK_H))](
        qkv,
        cos_sin,
        q_out,
        writable(k_cache),
        writable(v_cache),
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        batch.positions,
        batch.slots,
        epsilon,
        float(k_scale),
        float(v_scale),
        num_heads,
        kv_heads,
        HEAD_DIM=head_dim,
        ROTARY_DIM=cos_sin.shape[1],
        HALF_PADDED=triton.next_power_of_2(head_dim // 2),
        PAGE_SIZE=page_size,
        INTERLEAVED=interleaved,
        WEIGHT_OFFSET=norm_weight_offset,
        HAS_Q_NORM=q_norm is not None,
        HAS_K_NORM=k_norm is not None,
        WHOLE_Q_NORM=q_norm is not None and q_norm.shape[0] != head_dim,
        WHOLE_K_NORM=k_norm is not None and k_norm.shape[0] != head_dim,
        MULTIPLY_BEFORE_CAST=multiply_before_cast,
        BLOCK_H=BLOCK_H,
        BLOCK_ROW=BLOCK_ROW,
        num_warps=2,
        # The rotation must round as the reference does: no fused multiply-add.
        enable_fp_fusion=False,
    )
    return q_out

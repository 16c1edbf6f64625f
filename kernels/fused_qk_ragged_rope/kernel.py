"""Triton: head norms, rotation and cache write in one pass over qkv."""

import torch
import triton
import triton.language as tl

from quire.kernels.ragged_batch import RaggedBatch

BLOCK_H = 8


@triton.jit
def _normed(left, right, weight, columns, is_column, epsilon, HEAD_DIM: tl.constexpr, dtype):
    """RMS norm of heads given as two halves, rounded to `dtype` where HF rounds."""
    square = tl.sum(left * left, 1) + tl.sum(right * right, 1)
    inverse = (1.0 / tl.sqrt(square / HEAD_DIM + epsilon))[:, None]
    left_weight = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    right_weight = tl.load(weight + HEAD_DIM // 2 + columns, mask=is_column, other=0.0)
    left = (left * inverse).to(dtype).to(tl.float32) * left_weight[None, :]
    right = (right * inverse).to(dtype).to(tl.float32) * right_weight.to(tl.float32)[None, :]
    return left.to(dtype).to(tl.float32), right.to(dtype).to(tl.float32)


@triton.jit
def _store_halves(base, left, right, mask, HEAD_DIM: tl.constexpr):
    dtype = base.dtype.element_ty
    tl.store(base, left.to(dtype), mask=mask)
    tl.store(base + HEAD_DIM // 2, right.to(dtype), mask=mask)


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
    num_heads,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Grid (tokens, groups of BLOCK_H heads among the query, key and value heads)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    columns = tl.arange(0, HALF_PADDED)
    is_column = columns < HEAD_DIM // 2
    is_query = (head < num_heads)[:, None] & is_column[None, :]
    kv_head = head - num_heads
    is_key = ((kv_head >= 0) & (kv_head < num_kv_heads))[:, None] & is_column[None, :]
    value_head = kv_head - num_kv_heads
    is_value = ((value_head >= 0) & (value_head < num_kv_heads))[:, None] & is_column[None, :]

    row = qkv + token * (num_heads + 2 * num_kv_heads) * HEAD_DIM
    source = row + head[:, None] * HEAD_DIM + columns[None, :]
    is_head = is_query | is_key | is_value
    dtype = qkv.dtype.element_ty
    left = tl.load(source, mask=is_head, other=0.0).to(tl.float32)
    right = tl.load(source + HEAD_DIM // 2, mask=is_head, other=0.0).to(tl.float32)

    slot = tl.load(slots + token)
    page_row = slot // PAGE_SIZE * num_kv_heads * PAGE_SIZE + slot % PAGE_SIZE
    value_row = page_row + value_head[:, None] * PAGE_SIZE
    _store_halves(
        v_cache + value_row * HEAD_DIM + columns[None, :], left, right, is_value, HEAD_DIM
    )

    if HAS_Q_NORM:
        normed_left, normed_right = _normed(
            left, right, q_norm, columns, is_column, epsilon, HEAD_DIM, dtype
        )
        left = tl.where(is_query, normed_left, left)
        right = tl.where(is_query, normed_right, right)
    if HAS_K_NORM:
        normed_left, normed_right = _normed(
            left, right, k_norm, columns, is_column, epsilon, HEAD_DIM, dtype
        )
        left = tl.where(is_key, normed_left, left)
        right = tl.where(is_key, normed_right, right)

    angle = cos_sin + tl.load(positions + token).to(tl.int64) * HEAD_DIM + columns
    cos = tl.load(angle, mask=is_column, other=0.0)[None, :]
    sin = tl.load(angle + HEAD_DIM // 2, mask=is_column, other=0.0)[None, :]
    rotated_left = left * cos - right * sin
    rotated_right = right * cos + left * sin
    query = q_out + (token * num_heads + head[:, None]) * HEAD_DIM + columns[None, :]
    _store_halves(query, rotated_left, rotated_right, is_query, HEAD_DIM)
    key = k_cache + (page_row + kv_head[:, None] * PAGE_SIZE) * HEAD_DIM + columns[None, :]
    _store_halves(key, rotated_left, rotated_right, is_key, HEAD_DIM)


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
) -> torch.Tensor:
    """As `fused_qk_ragged_rope`, on a GPU (or in Triton's interpreter, on CPU tensors)."""
    _, kv_heads, page_size, head_dim = k_cache.shape
    num_tokens = qkv.shape[0]
    q_out = qkv.new_empty(num_tokens, num_heads, head_dim)
    rope_kernel[(num_tokens, triton.cdiv(num_heads + 2 * kv_heads, BLOCK_H))](
        qkv,
        cos_sin,
        q_out,
        k_cache,
        v_cache,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        batch.positions,
        batch.slots,
        epsilon,
        num_heads,
        kv_heads,
        HEAD_DIM=head_dim,
        HALF_PADDED=triton.next_power_of_2(head_dim // 2),
        PAGE_SIZE=page_size,
        HAS_Q_NORM=q_norm is not None,
        HAS_K_NORM=k_norm is not None,
        BLOCK_H=BLOCK_H,
        num_warps=2,
        # The rotation must round as the reference does: no fused multiply-add.
        enable_fp_fusion=False,
    )
    return q_out

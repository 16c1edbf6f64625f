"""Triton: RMS norm of cached keys in place, one program per head or per token."""

import torch
import triton
import triton.language as tl

from quire.kernels.ragged_batch import RaggedBatch


@triton.jit
def key_norm_kernel(
    k_cache,
    gamma,
    slots,
    epsilon,
    weight_offset,
    num_kv_heads,
    columns: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    MULTIPLY_BEFORE_CAST: tl.constexpr,
):
    """Grid (tokens, norms per token); BLOCK is the next power of two of `columns`."""
    slot = tl.load(slots + tl.program_id(0))
    column = tl.arange(0, BLOCK)
    mask = column < columns
    # A norm per head starts at its head and ends in it; one per token starts at head 0.
    head = tl.program_id(1) + column // HEAD_DIM
    row = (slot // PAGE_SIZE * num_kv_heads + head) * PAGE_SIZE + slot % PAGE_SIZE
    key = k_cache + row * HEAD_DIM + column % HEAD_DIM
    dtype = k_cache.dtype.element_ty
    value = tl.load(key, mask=mask, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, 0) / columns + epsilon)
    value *= inverse
    if not MULTIPLY_BEFORE_CAST:
        value = value.to(dtype).to(tl.float32)
    weight = tl.load(gamma + column, mask=mask, other=0.0).to(tl.float32) + weight_offset
    tl.store(key, (value * weight).to(dtype), mask=mask)


def rms_norm_key_cache_triton(
    k_cache: torch.Tensor,
    gamma: torch.Tensor,
    epsilon: float,
    batch: RaggedBatch,
    *,
    weight_offset: float = 0.0,
    rms_norm_cols: int | None = None,
    multiply_before_cast: bool = True,
    per_head_norm: bool = True,
) -> None:
    """As `rms_norm_key_cache`; gamma is as long as what is normalized."""
    _, kv_heads, page_size, head_dim = k_cache.shape
    columns = gamma.shape[0]
    block = triton.next_power_of_2(columns)
    if batch.num_tokens:
        key_norm_kernel[(batch.num_tokens, kv_heads if per_head_norm else 1)](
            k_cache,
            gamma,
            batch.slots,
            epsilon,
            weight_offset,
            kv_heads,
            columns=columns,
            HEAD_DIM=head_dim,
            PAGE_SIZE=page_size,
            BLOCK=block,
            MULTIPLY_BEFORE_CAST=multiply_before_cast,
            num_warps=min(max(block // 512, 1), 16),
        )

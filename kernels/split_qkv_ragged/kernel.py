"""Triton: heads of each row apart, and how keys and values are stored in the cache."""

import torch
import triton
import triton.language as tl

from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.cache_checks import FP8

BLOCK = 1024


@triton.jit
def float8_bits(value):
    """The float8_e4m3fn of a float32 as its byte: clamped to +-448, rounded to nearest even.

    In integers, so that chips without an fp8 conversion (sm_80) store the same bits.
    """
    magnitude = tl.minimum(tl.abs(value), 448.0)
    bits = magnitude.to(tl.int32, bitcast=True)
    # Round 23 mantissa bits to 3, then take the exponent's bias from 127 to 7.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # One unit in the last place of 2^14 is the least e4m3, 2^-9: the addition rounds to it.
    subnormal = (magnitude + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0.015625, subnormal, normal)
    given = value.to(tl.int32, bitcast=True)
    is_nan = (given & 0x7FFFFFFF) > 0x7F800000
    code = tl.where(is_nan, 0x7F, code)
    return (code | ((given >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def store_scaled(pointer, value, scale, mask):
    """Store a float32 in the dtype of `pointer`, or value / scale as fp8 where that is bytes."""
    if pointer.dtype.element_ty == tl.uint8:
        tl.store(pointer, float8_bits(tl.div_rn(value, scale)), mask=mask)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


def writable(cache: torch.Tensor) -> torch.Tensor:
    """`cache` as `store_scaled` takes it: fp8 as bytes."""
    return cache.view(torch.uint8) if cache.dtype == FP8 else cache


@triton.jit
def split_kernel(
    qkv,
    q_out,
    k_cache,
    v_cache,
    slots,
    row_stride,
    k_scale,
    v_scale,
    num_heads,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (tokens, blocks of columns)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head = column // HEAD_DIM
    element = column % HEAD_DIM
    kv_head = head - num_heads
    value_head = kv_head - num_kv_heads
    is_query = head < num_heads
    is_key = (kv_head >= 0) & (kv_head < num_kv_heads)
    is_value = (value_head >= 0) & (value_head < num_kv_heads) & HAS_VALUES
    is_column = is_query | is_key | is_value
    loaded = tl.load(qkv + token * row_stride + column, mask=is_column, other=0.0)
    tl.store(q_out + token * num_heads * HEAD_DIM + column, loaded, mask=is_query)

    slot = tl.load(slots + token)
    page_row = slot // PAGE_SIZE * num_kv_heads * PAGE_SIZE + slot % PAGE_SIZE
    value = loaded.to(tl.float32)
    key_row = (page_row + kv_head * PAGE_SIZE) * HEAD_DIM
    store_scaled(k_cache + key_row + element, value, k_scale, is_key)
    if HAS_VALUES:
        value_row = (page_row + value_head * PAGE_SIZE) * HEAD_DIM
        store_scaled(v_cache + value_row + element, value, v_scale, is_value)


def split_qkv_ragged_triton(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    batch: RaggedBatch,
    *,
    num_heads: int,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """As `split_qkv_ragged`; without `v_cache`, rows hold no value heads."""
    _, kv_heads, page_size, head_dim = k_cache.shape
    tokens, columns = qkv.shape
    q_out = qkv.new_empty(tokens, num_heads, head_dim)
    if tokens:
        split_kernel[(tokens, triton.cdiv(columns, BLOCK))](
            qkv,
            q_out,
            writable(k_cache),
            writable(k_cache if v_cache is None else v_cache),
            batch.slots,
            qkv.stride(0),
            float(k_scale),
            float(v_scale),
            num_heads,
            kv_heads,
            HEAD_DIM=head_dim,
            PAGE_SIZE=page_size,
            HAS_VALUES=v_cache is not None,
            BLOCK=BLOCK,
            num_warps=4,
        )
    return q_out

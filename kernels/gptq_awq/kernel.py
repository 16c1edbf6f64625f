"""Triton: tiles of 4-bit weights in GPTQ and AWQ words to fp32.

Both functions have the signature of `Packed.decode`. A word is loaded once and broadcast over
its 8 numbers, in dimensions that run in the order of the tile, so that the reshape moves nothing.
"""

import torch
import triton
import triton.language as tl

from quire.kernels.dequantizing_matmul.kernel import Packed, dequantize, dequantizing_matmul

BLOCK_K = 64
NO_ZEROS = -1
"""In the place of a zero offset: symmetric weights, whose zero point is 8."""


@triton.jit
def _gptq(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Words of 8 rows of K, dimensions [group, word, number, column]."""
    qweight, qzeros, scales, group_size = operands
    SPAN: tl.constexpr = CONSTANTS[0]
    ZERO_OFFSET: tl.constexpr = CONSTANTS[1]
    index = (column + tl.arange(0, BLOCK_N))[None, None, None, :]
    first = (k + SPAN * tl.arange(0, BLOCK_K // SPAN))[:, None, None, None]
    word = first // 8 + tl.arange(0, SPAN // 8)[None, :, None, None]
    number = tl.arange(0, 8)[None, None, :, None]
    mask = (index < out_features) & (word * 8 < in_features)
    packed = tl.load(qweight + word.to(tl.int64) * out_features + index, mask=mask, other=0)
    quants = (packed >> (number * 4)) & 15
    group = (first // group_size).to(tl.int64)
    mask = (index < out_features) & (first < in_features)
    if ZERO_OFFSET < 0:
        zero = 8
    else:
        zeros = tl.load(qzeros + group * (out_features // 8) + index // 8, mask=mask, other=0)
        zero = ((zeros >> (index % 8 * 4)) + ZERO_OFFSET) & 15
    scale = tl.load(scales + group * out_features + index, mask=mask, other=0.0).to(tl.float32)
    return tl.reshape(scale * (quants - zero).to(tl.float32), (BLOCK_K, BLOCK_N))


@triton.jit
def _awq(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Words of 8 columns, dimensions [group, row, word, number]."""
    qweight, qzeros, scales, group_size = operands
    SPAN: tl.constexpr = CONSTANTS[0]
    words = out_features // 8
    word = (column // 8 + tl.arange(0, BLOCK_N // 8))[None, None, :, None]
    number = tl.arange(0, 8)[None, None, None, :]
    # The nibbles of a word are columns 0, 2, 4, 6, 1, 3, 5, 7.
    shift = (number % 2 * 4 + number // 2) * 4
    first = (k + SPAN * tl.arange(0, BLOCK_K // SPAN))[:, None, None, None]
    row = first + tl.arange(0, SPAN)[None, :, None, None]
    mask = (word < words) & (row < in_features)
    packed = tl.load(qweight + row.to(tl.int64) * words + word, mask=mask, other=0)
    group = (first // group_size).to(tl.int64)
    mask = (word < words) & (first < in_features)
    zeros = tl.load(qzeros + group * words + word, mask=mask, other=0)
    scale = tl.load(scales + group * out_features + word * 8 + number, mask=mask, other=0.0)
    value = (((packed >> shift) & 15) - ((zeros >> shift) & 15)).to(tl.float32)
    return tl.reshape(scale.to(tl.float32) * value, (BLOCK_K, BLOCK_N))


def packed_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor | None,
    scales: torch.Tensor,
    *,
    group_size: int,
    zero_offset: int,
) -> Packed:
    """GPTQ tensors as `dequantizing_matmul` takes them."""
    in_features, out_features = qweight.shape[0] * 8, qweight.shape[1]
    rows = in_features if group_size == -1 else group_size
    return Packed(
        _gptq,
        (qweight, qweight if qzeros is None else qzeros, scales, rows),
        out_features,
        in_features,
        BLOCK_K,
        (_span(group_size), NO_ZEROS if qzeros is None else zero_offset),
    )


def packed_awq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, *, group_size: int
) -> Packed:
    """AWQ tensors as `dequantizing_matmul` takes them."""
    in_features, out_features = qweight.shape[0], qweight.shape[1] * 8
    rows = in_features if group_size == -1 else group_size
    operands = (qweight, qzeros, scales, rows)
    return Packed(_awq, operands, out_features, in_features, BLOCK_K, (_span(group_size),))


def _span(group_size: int) -> int:
    """How many rows of a tile share a scale; without groups, all."""
    return BLOCK_K if group_size == -1 else min(group_size, BLOCK_K)


def dequantize_gptq_triton(
    qweight: torch.Tensor,
    qzeros: torch.Tensor | None,
    scales: torch.Tensor,
    *,
    group_size: int,
    perm_idx: torch.Tensor | None = None,
    zero_offset: int = 1,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """As `dequantize_gptq`."""
    packed = packed_gptq(qweight, qzeros, scales, group_size=group_size, zero_offset=zero_offset)
    weight = dequantize(packed, out_dtype)
    if perm_idx is None:
        return weight
    return torch.empty_like(weight).index_copy_(1, perm_idx.long(), weight)


def matmul_gptq_triton(
    x_TK: torch.Tensor,
    qweight: torch.Tensor,
    qzeros: torch.Tensor | None,
    scales: torch.Tensor,
    *,
    group_size: int,
    perm_idx: torch.Tensor | None = None,
    zero_offset: int = 1,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_gptq`."""
    packed = packed_gptq(qweight, qzeros, scales, group_size=group_size, zero_offset=zero_offset)
    if perm_idx is not None:
        # Once for all column tiles, whose loads of x are then contiguous.
        x_TK = x_TK.index_select(1, perm_idx)
    return dequantizing_matmul(x_TK, packed, bias_N)


def dequantize_awq_triton(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    *,
    group_size: int,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """As `dequantize_awq`."""
    return dequantize(packed_awq(qweight, qzeros, scales, group_size=group_size), out_dtype)


def matmul_awq_triton(
    x_TK: torch.Tensor,
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    *,
    group_size: int,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_awq`."""
    packed = packed_awq(qweight, qzeros, scales, group_size=group_size)
    return dequantizing_matmul(x_TK, packed, bias_N)

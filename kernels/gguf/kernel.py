"""Triton: tiles of GGUF blocks to fp32, one function per encoding.

Every function has the signature of `Packed.decode`. Bytes are loaded once and broadcast over the
numbers they hold, in dimensions that run in the order of K, so that the reshape moves nothing.
"""

from types import MappingProxyType

import torch
import triton
import triton.language as tl

from quire.kernels.dequantizing_matmul.kernel import Packed, dequantize, dequantizing_matmul
from quire.kernels.gguf.encodings import in_features


@triton.jit
def _half(pointer, mask):
    """The float16 at `pointer`, which need not be aligned, as float32."""
    low = tl.load(pointer, mask=mask, other=0).to(tl.uint16)
    high = tl.load(pointer + 1, mask=mask, other=0).to(tl.uint16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _columns(operands, column, out_features, BLOCK_N: tl.constexpr):
    """Pointers to the rows of bytes of BLOCK_N output columns, and which exist: [1, 1, 1, N]."""
    weight, row_bytes = operands
    index = (column + tl.arange(0, BLOCK_N))[None, None, None, :]
    return weight + index.to(tl.int64) * row_bytes, index < out_features


@triton.jit
def _q4_0(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """float16 d, 16 bytes: d * (nibble - 8), low nibbles first."""
    rows, mask = _columns(operands, column, out_features, BLOCK_N)
    block = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    nibble = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 16)[None, None, :, None]
    mask = mask & (block * 32 < in_features)
    rows += block * 18
    quants = (tl.load(rows + 2 + lane, mask=mask, other=0).to(tl.int32) >> (nibble * 4)) & 15
    return tl.reshape(_half(rows, mask) * (quants - 8).to(tl.float32), (BLOCK_K, BLOCK_N))


@triton.jit
def _q8_0(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """float16 d, 32 int8: d * number."""
    rows, mask = _columns(operands, column, out_features, BLOCK_N)
    block = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    lane = tl.arange(0, 32)[None, None, :, None]
    mask = mask & (block * 32 < in_features)
    rows += block * 34
    quants = tl.load(rows + 2 + lane, mask=mask, other=0).to(tl.int8, bitcast=True)
    return tl.reshape(_half(rows, mask) * quants.to(tl.float32), (BLOCK_K, BLOCK_N))


@triton.jit
def _scale_and_minimum(blocks, part, mask):
    """Scale and minimum of 32-number part `part` of a Q4_K or Q5_K block, with d and dmin."""
    place = blocks + 4 + part % 4
    low_scale = tl.load(place, mask=mask, other=0).to(tl.int32)
    low_minimum = tl.load(place + 4, mask=mask, other=0).to(tl.int32)
    mixed = tl.load(place + 8, mask=mask, other=0).to(tl.int32)
    scale = tl.where(part < 4, low_scale & 63, (mixed & 15) | ((low_scale >> 2) & 0x30))
    minimum = tl.where(part < 4, low_minimum & 63, (mixed >> 4) | ((low_minimum >> 2) & 0x30))
    return (
        _half(blocks, mask) * scale.to(tl.float32),
        _half(blocks + 2, mask) * minimum.to(tl.float32),
    )


@triton.jit
def _q4_k(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """d, dmin, scales and minima, 4 * 32 bytes: low nibbles of 32 bytes, then their high ones."""
    rows, mask = _columns(operands, column, out_features, BLOCK_N)
    chunk = (k // 64 + tl.arange(0, BLOCK_K // 64))[:, None, None, None]
    nibble = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 32)[None, None, :, None]
    mask = mask & (chunk * 64 < in_features)
    rows += chunk // 4 * 144
    scale, minimum = _scale_and_minimum(rows, chunk % 4 * 2 + nibble, mask)
    packed = tl.load(rows + 16 + chunk % 4 * 32 + lane, mask=mask, other=0).to(tl.int32)
    quants = (packed >> (nibble * 4)) & 15
    return tl.reshape(scale * quants.to(tl.float32) - minimum, (BLOCK_K, BLOCK_N))


@triton.jit
def _q5_k(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """As Q4_K, with 32 bytes before the nibbles whose bit i is the fifth of part i."""
    rows, mask = _columns(operands, column, out_features, BLOCK_N)
    chunk = (k // 64 + tl.arange(0, BLOCK_K // 64))[:, None, None, None]
    nibble = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 32)[None, None, :, None]
    mask = mask & (chunk * 64 < in_features)
    rows += chunk // 4 * 176
    part = chunk % 4 * 2 + nibble
    scale, minimum = _scale_and_minimum(rows, part, mask)
    fifth = tl.load(rows + 16 + lane, mask=mask, other=0).to(tl.int32)
    packed = tl.load(rows + 48 + chunk % 4 * 32 + lane, mask=mask, other=0).to(tl.int32)
    quants = ((packed >> (nibble * 4)) & 15) | (((fifth >> part) & 1) << 4)
    return tl.reshape(scale * quants.to(tl.float32) - minimum, (BLOCK_K, BLOCK_N))


@triton.jit
def _q6_k(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """2 * 64 bytes of low bits, 2 * 32 of upper bits, 16 int8 scales, float16 d.

    A quarter of a block at a time, so that registers suffice: 2 * 2 * 16 numbers, the low or the
    high nibbles of 64 bytes.
    """
    tl.static_assert(BLOCK_K == 64)
    rows, mask = _columns(operands, column, out_features, BLOCK_N)
    part = tl.arange(0, 2)[:, None, None, None]
    sixteen = tl.arange(0, 2)[None, :, None, None]
    lane = sixteen * 16 + tl.arange(0, 16)[None, None, :, None]
    half = k // 128 % 2
    nibble = k // 64 % 2
    rows += k // 256 * 210
    low = tl.load(rows + half * 64 + part * 32 + lane, mask=mask, other=0).to(tl.int32)
    high = tl.load(rows + 128 + half * 32 + lane, mask=mask, other=0).to(tl.int32)
    scales = rows + 192 + half * 8 + nibble * 4 + part * 2 + sixteen
    scale = tl.load(scales, mask=mask, other=0).to(tl.int8, bitcast=True).to(tl.float32)
    scale *= _half(rows + 208, mask)
    quants = ((low >> (nibble * 4)) & 15) | (((high >> (nibble * 4 + part * 2)) & 3) << 4)
    return tl.reshape(scale * (quants - 32).to(tl.float32), (BLOCK_K, BLOCK_N))


DECODERS = MappingProxyType(
    {"Q4_0": _q4_0, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
)
BLOCK_K = 64
"""How many weights of a row a tile has."""


def packed_gguf(weight_bytes: torch.Tensor, encoding: str) -> Packed:
    """GGUF blocks [N, bytes per row] as `dequantizing_matmul` takes them."""
    rows, row_bytes = weight_bytes.shape
    operands = (weight_bytes, row_bytes)
    return Packed(DECODERS[encoding], operands, rows, in_features(row_bytes, encoding), BLOCK_K)


def dequantize_gguf_triton(
    weight_bytes: torch.Tensor, encoding: str, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As `dequantize_gguf`."""
    return dequantize(packed_gguf(weight_bytes, encoding), out_dtype)


def matmul_gguf_triton(
    x_TK: torch.Tensor,
    weight_bytes: torch.Tensor,
    encoding: str,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_gguf`."""
    return dequantizing_matmul(x_TK, packed_gguf(weight_bytes, encoding), bias_N)

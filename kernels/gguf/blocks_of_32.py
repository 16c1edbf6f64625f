"""Triton: tiles of GGUF blocks of 32 numbers to fp32, one function per encoding.

Every function has the signature of `Packed.decode`. Bytes are loaded once and broadcast over the
numbers they hold, in dimensions that run in the order of K, so that the reshape moves nothing.
"""

import triton
import triton.language as tl

from quire.kernels.gguf.block_loads import block_rows, half_at, on_curve


@triton.jit
def q4_0(
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
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    block = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    nibble = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 16)[None, None, :, None]
    mask = mask & (block * 32 < in_features)
    rows += block * 18
    quants = (tl.load(rows + 2 + lane, mask=mask, other=0).to(tl.int32) >> (nibble * 4)) & 15
    return tl.reshape(half_at(rows, mask) * (quants - 8).to(tl.float32), (BLOCK_K, BLOCK_N))


@triton.jit
def q8_0(
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
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    block = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    lane = tl.arange(0, 32)[None, None, :, None]
    mask = mask & (block * 32 < in_features)
    rows += block * 34
    quants = tl.load(rows + 2 + lane, mask=mask, other=0).to(tl.int8, bitcast=True)
    return tl.reshape(half_at(rows, mask) * quants.to(tl.float32), (BLOCK_K, BLOCK_N))


@triton.jit
def q4_1(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """float16 d and m, 16 bytes: d * nibble + m, low nibbles first."""
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    block = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    nibble = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 16)[None, None, :, None]
    mask = mask & (block * 32 < in_features)
    rows += block * 20
    quants = (tl.load(rows + 4 + lane, mask=mask, other=0).to(tl.int32) >> (nibble * 4)) & 15
    numbers = half_at(rows, mask) * quants.to(tl.float32) + half_at(rows + 2, mask)
    return tl.reshape(numbers, (BLOCK_K, BLOCK_N))


@triton.jit
def q5_0(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """float16 d, 32 fifth bits, 16 bytes of nibbles: d * (number - 16)."""
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    block = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    nibble = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 16)[None, None, :, None]
    mask = mask & (block * 32 < in_features)
    rows += block * 22
    quants = (tl.load(rows + 6 + lane, mask=mask, other=0).to(tl.int32) >> (nibble * 4)) & 15
    bits = tl.load(rows + 2 + nibble * 2 + lane // 8, mask=mask, other=0).to(tl.int32)
    quants |= ((bits >> (lane % 8)) & 1) << 4
    return tl.reshape(half_at(rows, mask) * (quants - 16).to(tl.float32), (BLOCK_K, BLOCK_N))


@triton.jit
def q5_1(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """float16 d and m, 32 fifth bits, 16 bytes of nibbles: d * number + m."""
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    block = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    nibble = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 16)[None, None, :, None]
    mask = mask & (block * 32 < in_features)
    rows += block * 24
    quants = (tl.load(rows + 8 + lane, mask=mask, other=0).to(tl.int32) >> (nibble * 4)) & 15
    bits = tl.load(rows + 4 + nibble * 2 + lane // 8, mask=mask, other=0).to(tl.int32)
    quants |= ((bits >> (lane % 8)) & 1) << 4
    numbers = half_at(rows, mask) * quants.to(tl.float32) + half_at(rows + 2, mask)
    return tl.reshape(numbers, (BLOCK_K, BLOCK_N))


@triton.jit
def iq4_nl(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """float16 d, 16 bytes: d * the number on a curve that the nibble stands for."""
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    block = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    nibble = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 16)[None, None, :, None]
    mask = mask & (block * 32 < in_features)
    rows += block * 18
    quants = (tl.load(rows + 2 + lane, mask=mask, other=0).to(tl.int32) >> (nibble * 4)) & 15
    numbers = half_at(rows, mask) * on_curve(quants).to(tl.float32)
    return tl.reshape(numbers, (BLOCK_K, BLOCK_N))

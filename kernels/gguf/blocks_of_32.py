"""Triton: tiles of GGUF blocks of 32 numbers to fp32, one function per encoding.

Every function has the signature of `Packed.decode`. Bytes are loaded once and broadcast over the
numbers they hold, in dimensions that run in the order of K, so that the reshape moves nothing.
"""

import triton
import triton.language as tl

from quire.kernels.gguf.block_loads import block_rows, half_at, on_curve


@triton.jit
def blocks_of_32(
    operands,
    column,
    k,
    in_features,
    out_features,
    BLOCK_BYTES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Pointers to the blocks of a tile, and which exist: [BLOCK_K // 32, 1, 1, N]."""
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    block = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    return rows + block * BLOCK_BYTES, mask & (block * 32 < in_features)


@triton.jit
def nibbles(pointer, mask):
    """The halves of 16 bytes, low ones first: [..., 2, 16, N]."""
    shift = tl.arange(0, 2)[None, :, None, None] * 4
    lane = tl.arange(0, 16)[None, None, :, None]
    return (tl.load(pointer + lane, mask=mask, other=0).to(tl.int32) >> shift) & 15


@triton.jit
def fifth_bits(pointer, mask):
    """The bits of 4 bytes, in the order of `nibbles`."""
    half = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 16)[None, None, :, None]
    packed = tl.load(pointer + half * 2 + lane // 8, mask=mask, other=0).to(tl.int32)
    return (packed >> (lane % 8)) & 1


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
    rows, mask = blocks_of_32(operands, column, k, in_features, out_features, 18, BLOCK_K, BLOCK_N)
    quants = nibbles(rows + 2, mask)
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
    rows, mask = blocks_of_32(operands, column, k, in_features, out_features, 34, BLOCK_K, BLOCK_N)
    lane = tl.arange(0, 32)[None, None, :, None]
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
    rows, mask = blocks_of_32(operands, column, k, in_features, out_features, 20, BLOCK_K, BLOCK_N)
    quants = nibbles(rows + 4, mask)
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
    rows, mask = blocks_of_32(operands, column, k, in_features, out_features, 22, BLOCK_K, BLOCK_N)
    quants = nibbles(rows + 6, mask)
    quants |= fifth_bits(rows + 2, mask) << 4
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
    rows, mask = blocks_of_32(operands, column, k, in_features, out_features, 24, BLOCK_K, BLOCK_N)
    quants = nibbles(rows + 8, mask)
    quants |= fifth_bits(rows + 4, mask) << 4
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
    rows, mask = blocks_of_32(operands, column, k, in_features, out_features, 18, BLOCK_K, BLOCK_N)
    quants = nibbles(rows + 2, mask)
    numbers = half_at(rows, mask) * on_curve(quants).to(tl.float32)
    return tl.reshape(numbers, (BLOCK_K, BLOCK_N))

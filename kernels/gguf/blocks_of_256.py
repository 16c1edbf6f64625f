"""Triton: tiles of GGUF blocks of 256 numbers to fp32, one function per encoding.

Every function has the signature of `Packed.decode`. Bytes are loaded once and broadcast over the
numbers they hold, in dimensions that run in the order of K, so that the reshape moves nothing.
"""

import triton
import triton.language as tl

from quire.kernels.gguf.block_loads import block_rows, half_at, on_curve


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
        half_at(blocks, mask) * scale.to(tl.float32),
        half_at(blocks + 2, mask) * minimum.to(tl.float32),
    )


@triton.jit
def q4_k(
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
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
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
def q5_k(
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
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
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
def q6_k(
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
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
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
    scale *= half_at(rows + 208, mask)
    quants = ((low >> (nibble * 4)) & 15) | (((high >> (nibble * 4 + part * 2)) & 3) << 4)
    return tl.reshape(scale * (quants - 32).to(tl.float32), (BLOCK_K, BLOCK_N))


@triton.jit
def q2_k(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """16 bytes of scale and minimum, 64 of numbers, d, dmin: as Q4_K, of 2 bits.

    Half of a half block at a time: two shifts of 32 bytes, 16 numbers to a scale.
    """
    tl.static_assert(BLOCK_K == 64)
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    part = tl.arange(0, 2)[:, None, None, None]
    sixteen = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 16)[None, None, :, None]
    half_block = k // 128 % 2
    shift = k // 64 % 2 * 2 + part
    rows += k // 256 * 84
    packed = tl.load(rows + 16 + half_block * 32 + sixteen * 16 + lane, mask=mask, other=0).to(
        tl.int32
    )
    quants = (packed >> (shift * 2)) & 3
    both = tl.load(rows + half_block * 8 + shift * 2 + sixteen, mask=mask, other=0).to(tl.int32)
    scale = half_at(rows + 80, mask) * (both & 15).to(tl.float32)
    minimum = half_at(rows + 82, mask) * (both >> 4).to(tl.float32)
    return tl.reshape(scale * quants.to(tl.float32) - minimum, (BLOCK_K, BLOCK_N))


@triton.jit
def q3_k(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """32 bytes of upper bits, 64 of lower two, 16 scales of 6 bits in 12 bytes, float16 d."""
    tl.static_assert(BLOCK_K == 64)
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    part = tl.arange(0, 2)[:, None, None, None]
    sixteen = tl.arange(0, 2)[None, :, None, None]
    lane = sixteen * 16 + tl.arange(0, 16)[None, None, :, None]
    half_block = k // 128 % 2
    shift = k // 64 % 2 * 2 + part
    rows += k // 256 * 110
    packed = tl.load(rows + 32 + half_block * 32 + lane, mask=mask, other=0).to(tl.int32)
    upper = tl.load(rows + lane, mask=mask, other=0).to(tl.int32)
    quants = ((packed >> (shift * 2)) & 3) | (((upper >> (half_block * 4 + shift)) & 1) << 2)
    index = half_block * 8 + shift * 2 + sixteen
    low = tl.load(rows + 96 + index % 8, mask=mask, other=0).to(tl.int32) >> (index // 8 * 4)
    high = tl.load(rows + 104 + index % 4, mask=mask, other=0).to(tl.int32) >> (index // 4 * 2)
    scale = ((low & 15) | ((high & 3) << 4)) - 32
    numbers = half_at(rows + 108, mask) * scale.to(tl.float32) * (quants - 4).to(tl.float32)
    return tl.reshape(numbers, (BLOCK_K, BLOCK_N))


@triton.jit
def iq4_xs(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """float16 d, 8 scales of 6 bits in 2 + 4 bytes, 8 * 16 bytes of nibbles as of IQ4_NL."""
    rows, mask = block_rows(operands, column, out_features, BLOCK_N)
    part = (k // 32 + tl.arange(0, BLOCK_K // 32))[:, None, None, None]
    nibble = tl.arange(0, 2)[None, :, None, None]
    lane = tl.arange(0, 16)[None, None, :, None]
    mask = mask & (part * 32 < in_features)
    rows += part // 8 * 136
    part = part % 8
    high = tl.load(rows + 2 + part // 4, mask=mask, other=0).to(tl.int32) >> (part % 4 * 2)
    low = tl.load(rows + 4 + part // 2, mask=mask, other=0).to(tl.int32) >> (part % 2 * 4)
    scale = ((low & 15) | ((high & 3) << 4)) - 32
    packed = tl.load(rows + 8 + part * 16 + lane, mask=mask, other=0).to(tl.int32)
    numbers = half_at(rows, mask) * scale.to(tl.float32)
    numbers *= on_curve((packed >> (nibble * 4)) & 15).to(tl.float32)
    return tl.reshape(numbers, (BLOCK_K, BLOCK_N))

"""Triton: what the decoders of GGUF blocks share."""

import triton
import triton.language as tl


@triton.jit
def half_at(pointer, mask):
    """The float16 at `pointer`, which need not be aligned, as float32."""
    low = tl.load(pointer, mask=mask, other=0).to(tl.uint16)
    high = tl.load(pointer + 1, mask=mask, other=0).to(tl.uint16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def block_rows(operands, column, out_features, BLOCK_N: tl.constexpr):
    """Pointers to the rows of bytes of BLOCK_N output columns, and which exist: [1, 1, 1, N]."""
    weight, row_bytes = operands
    index = (column + tl.arange(0, BLOCK_N))[None, None, None, :]
    return weight + index.to(tl.int64) * row_bytes, index < out_features


@triton.jit
def on_curve(quants):
    """The numbers that nibbles stand for in IQ4_NL and IQ4_XS; four to a word, as bytes less 128."""
    low = tl.where(quants < 4, 0x3F2D1801, 0x766A5D4F).to(tl.int64)
    high = tl.where(quants < 12, 0xA6998D81, 0xF1D9C5B5).to(tl.int64)
    word = tl.where(quants < 8, low, high)
    return ((word >> (quants % 4 * 8)).to(tl.int32) & 255) - 128

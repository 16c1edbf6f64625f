"""Triton: y = x W^T + b with W dequantized in registers, and dequantization alone.

A row's bits do not depend on the other rows. Tile shape and order over K follow from dtype, format
and width: K is cut into spans, each is summed from zero, and the sums are added in order. Few rows
take a program per span, so that enough loads are in flight to read the weights at full speed; many
rows take one program for all spans. Both do the same arithmetic, and contraction by the compiler
is off, which might differ between them: weights are those of `dequantize` in each.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

WIDE_FEATURES = 8192
"""From here on wider tiles still give every processor work."""
PROGRAMS = 1024
"""How many programs a chip of 130 processors keeps busy; K is cut to have about as many."""
LEAST_TILES = 4
"""A span has at least as many tiles along K, for their loads to overlap."""
SPLIT_BELOW = 512
"""With as many tiles of the output, each takes a program: spans would only move more bytes."""
BLOCK_OF_SUMS = 1024


@dataclass(frozen=True)
class Packed:
    """A weight [out_features, in_features] in a packed format.

    `decode(operands, column, k, in_features, out_features, CONSTANTS, BLOCK_K, BLOCK_N)` is a
    Triton function that returns weights [k : k + BLOCK_K, column : column + BLOCK_N] in fp32 and
    finite numbers beyond the edges. `block_k`, its BLOCK_K, is a power of 2.
    """

    decode: Any
    operands: tuple[Any, ...]
    out_features: int
    in_features: int
    block_k: int
    constants: tuple[int, ...] = ()


@triton.jit
def _sum_of_span(
    x_row,
    is_row,
    operands,
    column,
    first,
    span,
    in_features,
    out_features,
    DECODE: tl.constexpr,
    CONSTANTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x W^T over K from `first` to `first + span`, [BLOCK_M, BLOCK_N] fp32."""
    step = tl.arange(0, BLOCK_K)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(first, tl.minimum(first + span, in_features), BLOCK_K):
        k = start + step
        left = tl.load(x_row + k, mask=is_row & (k < in_features), other=0.0)
        right = DECODE(
            operands, column, start, in_features, out_features, CONSTANTS, BLOCK_K, BLOCK_N
        )
        total = tl.dot(left, right.to(left.dtype), total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["rows"])
def dequantizing_matmul_kernel(
    x,
    operands,
    bias,
    out,
    rows,
    out_features,
    in_features,
    span,
    out_stride,
    DECODE: tl.constexpr,
    CONSTANTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Grid (column tiles * row tiles, spans), row tiles of the same weights beside each other.

    Split, `out` is [spans, rows, out_features] fp32; otherwise there is one program for all spans.
    """
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BLOCK_M)
    row = program % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    first_column = program // row_tiles * BLOCK_N
    is_row = (row < rows)[:, None]
    row = row.to(tl.int64)[:, None]
    x_row = x + row * in_features
    if IS_SPLIT:
        first = tl.program_id(1) * span
        total = _sum_of_span(
            x_row, is_row, operands, first_column, first, span, in_features, out_features,
            DECODE, CONSTANTS, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        row += tl.program_id(1).to(tl.int64) * rows
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for first in range(0, in_features, span):
            total += _sum_of_span(
                x_row, is_row, operands, first_column, first, span, in_features, out_features,
                DECODE, CONSTANTS, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    column = first_column + tl.arange(0, BLOCK_N)
    is_column = column < out_features
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    target = out + row * out_stride + column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=is_row & is_column[None, :])


@triton.jit(do_not_specialize=["rows"])
def sum_of_spans_kernel(
    sums,
    bias,
    out,
    rows,
    out_features,
    spans,
    out_stride,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows, blocks of columns): the sums of the spans, added in order."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < out_features
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    part = sums + row * out_features + column
    for _ in range(spans):
        total += tl.load(part, mask=mask, other=0.0)
        part += rows.to(tl.int64) * out_features
    if HAS_BIAS:
        total += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def dequantize_kernel(
    operands,
    out,
    out_features,
    in_features,
    DECODE: tl.constexpr,
    CONSTANTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (column tiles * K tiles,), K tiles of the same columns beside each other."""
    program = tl.program_id(0)
    k_tiles = tl.cdiv(in_features, BLOCK_K)
    start = program % k_tiles * BLOCK_K
    first_column = program // k_tiles * BLOCK_N
    value = DECODE(
        operands, first_column, start, in_features, out_features, CONSTANTS, BLOCK_K, BLOCK_N
    )
    k = start + tl.arange(0, BLOCK_K)
    column = first_column + tl.arange(0, BLOCK_N)
    mask = (k < in_features)[:, None] & (column < out_features)[None, :]
    target = out + column.to(tl.int64)[None, :] * in_features + k[:, None]
    tl.store(target, value.to(out.dtype.element_ty), mask=mask)


def tile_shape(dtype: torch.dtype, out_features: int) -> tuple[int, int]:
    """BLOCK_M and BLOCK_N: by dtype and width, never by the number of rows."""
    if dtype == torch.float32:
        return 32, 32
    return 64, 64 if out_features >= WIDE_FEATURES else 32


def span_of(packed: Packed, block_n: int) -> int:
    """How much of K is summed from zero at a time: by width, never by the number of rows."""
    k_tiles = triton.cdiv(packed.in_features, packed.block_k)
    wanted = PROGRAMS // triton.cdiv(packed.out_features, block_n)
    spans = max(1, min(wanted, k_tiles // LEAST_TILES))
    return int(triton.cdiv(k_tiles, spans)) * packed.block_k


def dequantizing_matmul(
    x_TK: torch.Tensor,
    packed: Packed,
    bias_N: torch.Tensor | None = None,
    out_TN: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + b; `out_TN` may be columns of a wider tensor."""
    rows, out_features = x_TK.shape[0], packed.out_features
    out = x_TK.new_empty(rows, out_features) if out_TN is None else out_TN
    if out.numel() == 0:
        return out
    block_m, block_n = tile_shape(x_TK.dtype, out_features)
    span = span_of(packed, block_n)
    tiles = triton.cdiv(out_features, block_n) * triton.cdiv(rows, block_m)
    spans = triton.cdiv(packed.in_features, span)
    is_split = spans > 1 and tiles < SPLIT_BELOW
    target = out
    if is_split:
        target = x_TK.new_empty(spans * rows, out_features, dtype=torch.float32)
    bias = x_TK if bias_N is None else bias_N
    dequantizing_matmul_kernel[(tiles, spans if is_split else 1)](
        x_TK,
        packed.operands,
        bias,
        target,
        rows,
        out_features,
        packed.in_features,
        span,
        target.stride(0),
        DECODE=packed.decode,
        CONSTANTS=packed.constants,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=packed.block_k,
        IS_SPLIT=is_split,
        HAS_BIAS=bias_N is not None and not is_split,
        num_warps=4,
        num_stages=3,
        enable_fp_fusion=False,
    )
    if is_split:
        sum_of_spans_kernel[(rows, triton.cdiv(out_features, BLOCK_OF_SUMS))](
            target,
            bias,
            out,
            rows,
            out_features,
            spans,
            out.stride(0),
            HAS_BIAS=bias_N is not None,
            BLOCK=BLOCK_OF_SUMS,
            num_warps=4,
        )
    return out


def dequantize(packed: Packed, out_dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K], computed in fp32 and rounded to `out_dtype`."""
    device = packed.operands[0].device
    out = torch.empty(packed.out_features, packed.in_features, dtype=out_dtype, device=device)
    if out.numel():
        block_n = 32
        grid = triton.cdiv(out.shape[0], block_n) * triton.cdiv(out.shape[1], packed.block_k)
        dequantize_kernel[(grid,)](
            packed.operands,
            out,
            packed.out_features,
            packed.in_features,
            DECODE=packed.decode,
            CONSTANTS=packed.constants,
            BLOCK_N=block_n,
            BLOCK_K=packed.block_k,
            num_warps=4,
            # A multiplication fused with the subtraction of a minimum would round once, not twice.
            enable_fp_fusion=False,
        )
    return out

"""Triton: residual addition and RMS norm, one program per row, the row read once."""

import torch
import triton
import triton.language as tl

from quire.kernels.activations.kernel import magnitude_of, row_scale, scaled_bits
from quire.kernels.float8 import FP8


@triton.jit
def _normed(
    x,
    weight,
    residual,
    total,
    epsilon,
    offset,
    columns: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BEFORE_CAST: tl.constexpr,
):
    """The normed row, rounded to the dtype of x; stores the sum."""
    row = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, BLOCK)
    mask = column < columns
    dtype = x.dtype.element_ty
    value = tl.load(x + row + column, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + row + column, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(dtype)
        tl.store(total + row + column, rounded, mask=mask)
        value = rounded.to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, 0) / columns + epsilon)
    scale = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    if HAS_OFFSET:
        scale += offset
    result = value * inverse
    if not BEFORE_CAST:
        result = result.to(dtype).to(tl.float32)
    return (result * scale).to(dtype)


@triton.jit
def rms_norm_kernel(
    x,
    weight,
    residual,
    normed,
    total,
    epsilon,
    offset,
    columns: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BEFORE_CAST: tl.constexpr,
):
    """Grid (rows,); BLOCK is the next power of two of `columns`, so a row's order is fixed."""
    result = _normed(
        x, weight, residual, total, epsilon, offset,
        columns, BLOCK, HAS_RESIDUAL, HAS_OFFSET, BEFORE_CAST,
    )  # fmt: skip
    column = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * columns
    tl.store(normed + row + column, result, mask=column < columns)


@triton.jit
def rms_norm_quantized_kernel(
    x,
    weight,
    residual,
    out,
    scales,
    total,
    epsilon,
    offset,
    columns: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BEFORE_CAST: tl.constexpr,
    IS_DYNAMIC: tl.constexpr,
):
    """Grid (rows,); `out` as bytes."""
    result = _normed(
        x, weight, residual, total, epsilon, offset,
        columns, BLOCK, HAS_RESIDUAL, HAS_OFFSET, BEFORE_CAST,
    ).to(tl.float32)  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if IS_DYNAMIC:
        scale = row_scale(tl.max(magnitude_of(result), 0))
        tl.store(scales + row, scale)
    else:
        scale = tl.load(scales)
    column = tl.arange(0, BLOCK)
    tl.store(out + row * columns + column, scaled_bits(result, scale), mask=column < columns)


def rms_norm_triton(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
    *,
    weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rms_norm`."""
    rows, columns = x_TC.shape
    normed = torch.empty_like(x_TC)
    total = x_TC if residual_TC is None else torch.empty_like(x_TC)
    block = triton.next_power_of_2(columns)
    if rows:
        rms_norm_kernel[(rows,)](
            x_TC,
            weight_C,
            x_TC if residual_TC is None else residual_TC,
            normed,
            total,
            epsilon,
            float(weight_offset),
            columns=columns,
            BLOCK=block,
            HAS_RESIDUAL=residual_TC is not None,
            HAS_OFFSET=weight_offset != 0.0,
            BEFORE_CAST=multiply_before_cast,
            num_warps=min(max(block // 512, 1), 16),
        )
    return normed, total


def rms_norm_quantized_triton(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `rms_norm_quantized`."""
    rows, columns = x_TC.shape
    out = torch.empty_like(x_TC, dtype=FP8)
    scales = x_TC.new_empty(rows, 1, dtype=torch.float32) if scale is None else scale
    total = x_TC if residual_TC is None else torch.empty_like(x_TC)
    block = triton.next_power_of_2(columns)
    if rows:
        rms_norm_quantized_kernel[(rows,)](
            x_TC,
            weight_C,
            x_TC if residual_TC is None else residual_TC,
            out.view(torch.uint8),
            scales,
            total,
            epsilon,
            float(weight_offset),
            columns=columns,
            BLOCK=block,
            HAS_RESIDUAL=residual_TC is not None,
            HAS_OFFSET=weight_offset != 0.0,
            BEFORE_CAST=multiply_before_cast,
            IS_DYNAMIC=scale is None,
            num_warps=min(max(block // 512, 1), 16),
        )
    return out, scales, total

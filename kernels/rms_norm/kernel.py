"""Triton: residual addition and RMS norm, one program per row, the row read once."""

import torch
import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x,
    weight,
    residual,
    normed,
    total,
    epsilon,
    columns: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Grid (rows,); BLOCK is the next power of two of `columns`, so a row's order is fixed."""
    row = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, BLOCK)
    mask = column < columns
    dtype = normed.dtype.element_ty
    value = tl.load(x + row + column, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + row + column, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(dtype)
        tl.store(total + row + column, rounded, mask=mask)
        value = rounded.to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, 0) / columns + epsilon)
    scale = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    result = (value * inverse).to(dtype).to(tl.float32) * scale
    tl.store(normed + row + column, result.to(dtype), mask=mask)


def rms_norm_triton(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
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
            columns=columns,
            BLOCK=block,
            HAS_RESIDUAL=residual_TC is not None,
            num_warps=min(max(block // 512, 1), 16),
        )
    return normed, total

"""Triton: residual addition and layer norm, one program per row, the row read once."""

import torch
import triton
import triton.language as tl


@triton.jit
def layer_norm_kernel(
    x,
    weight,
    bias,
    residual,
    normed,
    total,
    epsilon,
    columns: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
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
    centered = tl.where(mask, value - tl.sum(value, 0) / columns, 0.0)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(centered * centered, 0) / columns + epsilon)
    result = centered * inverse * tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        result += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(normed + row + column, result.to(dtype), mask=mask)


def layer_norm_triton(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `layer_norm`."""
    rows, columns = x_TC.shape
    normed = torch.empty_like(x_TC)
    total = x_TC if residual_TC is None else torch.empty_like(x_TC)
    block = triton.next_power_of_2(columns)
    if normed.numel():
        layer_norm_kernel[(rows,)](
            x_TC,
            weight_C,
            weight_C if bias_C is None else bias_C,
            x_TC if residual_TC is None else residual_TC,
            normed,
            total,
            epsilon,
            columns=columns,
            BLOCK=block,
            HAS_BIAS=bias_C is not None,
            HAS_RESIDUAL=residual_TC is not None,
            num_warps=min(max(block // 512, 1), 16),
        )
    return normed, total

"""Triton: float rows to fp8, read and written once; scales from magnitudes, in any order equal."""

import torch
import triton
import triton.language as tl

from quire.kernels.float8 import FLOAT32, FP8
from quire.kernels.quantize_scaled_float8.groups import WHOLE_ROW, group_width, num_groups
from quire.kernels.split_qkv_ragged.kernel import float8_bits

BLOCK = 2048


@triton.jit
def static_kernel(x, scale, out, columns, BLOCK: tl.constexpr):
    """Grid (rows, blocks of columns); `out` as bytes."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * columns + column
    mask = column < columns
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, float8_bits(tl.div_rn(value, tl.load(scale))), mask=mask)


def quantize_static_scaled_float8_triton(x_TK: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """As `quantize_static_scaled_float8`."""
    rows, columns = x_TK.shape
    out = torch.empty_like(x_TK, dtype=FP8)
    block = min(triton.next_power_of_2(columns), BLOCK)
    if out.numel():
        static_kernel[(rows, triton.cdiv(columns, block))](
            x_TK, scale, out.view(torch.uint8), columns, BLOCK=block, num_warps=4
        )
    return out


@triton.jit
def dynamic_kernel(
    x,
    out,
    scales,
    greatest,
    columns,
    groups,
    width,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Grid (rows, blocks of GROUPS groups); WIDTH is the power of two that holds a group."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    within = tl.arange(0, WIDTH)
    column = group[:, None] * width + within[None, :]
    mask = (within < width)[None, :] & (column < columns)
    value = tl.load(x + row * columns + column, mask=mask, other=0.0).to(tl.float32)
    # The greater of NaN and 0 is 0.
    magnitude = tl.maximum(tl.abs(value), 0.0, propagate_nan=tl.PropagateNan.NONE)
    bounded = tl.minimum(tl.max(magnitude, 1), greatest)
    # 2^-126, the smallest normal: a quotient by it is finite, and zeros stay zeros.
    scale = tl.maximum(tl.div_rn(bounded, 448.0), 2.0**-126)
    tl.store(scales + row * groups + group, scale, mask=group < groups)
    stored = float8_bits(tl.div_rn(value, scale[:, None]))
    tl.store(out + row * columns + column, stored, mask=mask)


def quantize_dynamic_scaled_float8_triton(
    x_TK: torch.Tensor,
    *,
    group_size_or_per_token: int = WHOLE_ROW,
    scale_ub: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `quantize_dynamic_scaled_float8`."""
    rows, columns = x_TK.shape
    groups = num_groups(columns, group_size_or_per_token)
    width = group_width(columns, group_size_or_per_token)
    out = torch.empty_like(x_TK, dtype=FP8)
    scales = x_TK.new_empty(rows, groups, dtype=torch.float32)
    block_width = triton.next_power_of_2(width)
    block_groups = min(triton.next_power_of_2(groups), max(1, BLOCK // block_width))
    if rows:
        dynamic_kernel[(rows, triton.cdiv(groups, block_groups))](
            x_TK,
            out.view(torch.uint8),
            scales,
            FLOAT32.max if scale_ub is None else scale_ub,
            columns,
            groups,
            width,
            GROUPS=block_groups,
            WIDTH=block_width,
            num_warps=min(max(block_width * block_groups // 512, 1), 16),
        )
    return out, scales

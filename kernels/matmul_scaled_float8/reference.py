"""Scaled fp8 products in plain torch: dequantized in fp32, then multiplied; also the CPU path."""

import torch

from quire.kernels.float8 import SCALE_BLOCK, are_block_scales


def _in_blocks(stored_RK: torch.Tensor, scales: torch.Tensor, block_rows: int) -> torch.Tensor:
    """stored * scale in fp32 with a scale for each block of `block_rows` x 128."""
    rows, columns = stored_RK.shape
    wide = scales.repeat_interleave(SCALE_BLOCK, 1).repeat_interleave(block_rows, 0)
    return stored_RK.float() * wide[:rows, :columns]


def dynamic_scaled_matmul_reference(
    a_MK: torch.Tensor,
    b_NK: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    *,
    out_type: torch.dtype = torch.bfloat16,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `dynamic_scaled_matmul`."""
    if are_block_scales(b_NK, b_scales):
        a, b = _in_blocks(a_MK, a_scales, 1), _in_blocks(b_NK, b_scales, SCALE_BLOCK)
    else:
        a, b = a_MK.float() * a_scales.view(-1, 1), b_NK.float() * b_scales.view(-1, 1)
    y_MN = a @ b.t()
    return (y_MN if bias_N is None else y_MN + bias_N.float()).to(out_type)


def matmul_static_scaled_float8_reference(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    input_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    out_type: torch.dtype = torch.bfloat16,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_static_scaled_float8`."""
    return dynamic_scaled_matmul_reference(
        x_TK, weight_NK, input_scale, weight_scale, out_type=out_type, bias_N=bias_N
    )

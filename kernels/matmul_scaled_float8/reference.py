"""Scaled fp8 products in plain torch: dequantized in fp32, then multiplied; also the CPU path."""

import torch

from quire.kernels.matmul_scaled_float8 import SCALE_BLOCK, are_block_scales


def dequantized(stored_RK: torch.Tensor, scales: torch.Tensor, block_rows: int = 1) -> torch.Tensor:
    """stored * scale in fp32; scales are one number, per row, or per `block_rows` x 128 block."""
    if scales.ndim == 2 and scales.shape[1] > 1:
        scales = scales.repeat_interleave(SCALE_BLOCK, 1)[:, : stored_RK.shape[1]]
    if scales.ndim == 2 and scales.shape[0] > 1:
        scales = scales.repeat_interleave(block_rows, 0)[: stored_RK.shape[0]]
    return stored_RK.float() * scales


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
    block_rows = SCALE_BLOCK if are_block_scales(b_NK, b_scales) else 1
    y_MN = dequantized(a_MK, a_scales) @ dequantized(b_NK, b_scales, block_rows).t()
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

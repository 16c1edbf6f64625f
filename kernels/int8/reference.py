"""int8 weights in plain torch: the definition of correct, and the CPU path."""

import torch

from quire.kernels.linear.reference import linear_reference


def dequantize_int8_reference(
    weight_NK: torch.Tensor, scale_N1: torch.Tensor, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As `dequantize_int8`."""
    return (weight_NK.float() * scale_N1).to(out_dtype)


def matmul_int8_reference(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N1: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_int8`."""
    weight = dequantize_int8_reference(weight_NK, scale_N1, x_TK.dtype)
    return linear_reference(x_TK, weight, bias_N)

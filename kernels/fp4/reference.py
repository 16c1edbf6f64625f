"""4-bit floats in plain torch: the definition of correct, and the CPU path."""

import torch

from quire.kernels.fp4.formats import E2M1
from quire.kernels.linear.reference import linear_reference


def _scaled(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """e2m1 bytes [N, K / 2], low nibble first, times fp32 scales [N, groups]: [N, K] float32."""
    table = torch.tensor(E2M1, device=weight.device)
    rows, row_bytes = weight.shape
    groups = scale.shape[1]
    values = table[torch.stack((weight & 15, weight >> 4), -1).int()]
    grouped = values.reshape(rows, groups, 2 * row_bytes // groups if groups else 0)
    return (grouped * scale[..., None]).reshape(rows, 2 * row_bytes)


def dequantize_mxfp4_reference(
    weight: torch.Tensor, weight_scale: torch.Tensor, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As `dequantize_mxfp4`."""
    scale = weight_scale.view(torch.float8_e8m0fnu).float()
    return _scaled(weight, scale).to(out_dtype)


def matmul_mxfp4_reference(
    x_TK: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_mxfp4`."""
    dense = dequantize_mxfp4_reference(weight, weight_scale, x_TK.dtype)
    return linear_reference(x_TK, dense, bias_N)


def dequantize_nvfp4_reference(
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_scale_2: torch.Tensor,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """As `dequantize_nvfp4`."""
    return _scaled(weight, weight_scale.float() * weight_scale_2).to(out_dtype)


def matmul_nvfp4_reference(
    x_TK: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_scale_2: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_nvfp4`."""
    dense = dequantize_nvfp4_reference(weight, weight_scale, weight_scale_2, x_TK.dtype)
    return linear_reference(x_TK, dense, bias_N)

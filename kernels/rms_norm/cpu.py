"""RMS norm on a CPU: the compiled kernel where it was installed, else torch's."""

import torch

from quire.kernels.native import library
from quire.kernels.native.row_ops import RMS, RMS_ROUNDED_ONCE, is_native, norm_native
from quire.kernels.rms_norm.reference import quantized, rms_norm_reference


def rms_norm_cpu(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
    *,
    weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rms_norm`."""
    native = library()
    if native is not None and is_native(x_TC):
        kind = RMS_ROUNDED_ONCE if multiply_before_cast else RMS
        return norm_native(native, kind, x_TC, weight_C, None, epsilon, residual_TC, weight_offset)
    return rms_norm_reference(
        x_TC,
        weight_C,
        epsilon,
        residual_TC,
        weight_offset=weight_offset,
        multiply_before_cast=multiply_before_cast,
    )


def rms_norm_quantized_cpu(
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
    normed, total = rms_norm_cpu(
        x_TC,
        weight_C,
        epsilon,
        residual_TC,
        weight_offset=weight_offset,
        multiply_before_cast=multiply_before_cast,
    )
    return *quantized(normed, scale), total

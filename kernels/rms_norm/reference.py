"""RMS norm in plain torch: the definition of correct."""

import torch

from quire.kernels.quantize_scaled_float8.reference import (
    quantize_dynamic_scaled_float8_reference,
    quantize_static_scaled_float8_reference,
)


def rms_norm_reference(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
    *,
    weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rms_norm`."""
    if residual_TC is not None:
        x_TC = x_TC + residual_TC
    wide = x_TC.float()
    # fp32 square root and division are correctly rounded, so vector body and scalar tail agree;
    # a bfloat16 rsqrt differs between them.
    inverse = 1.0 / torch.sqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    normed = wide * inverse
    if not multiply_before_cast:
        normed = normed.to(x_TC.dtype)
        if weight_offset == 0.0:
            return weight_C * normed, x_TC
    return (normed * (weight_C.float() + weight_offset)).to(x_TC.dtype), x_TC


def rms_norm_quantized_reference(
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
    normed, total = rms_norm_reference(
        x_TC,
        weight_C,
        epsilon,
        residual_TC,
        weight_offset=weight_offset,
        multiply_before_cast=multiply_before_cast,
    )
    return *quantized(normed, scale), total


def quantized(
    normed: torch.Tensor, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A norm as fp8 and its scales: one per row, or the given one."""
    if scale is None:
        return quantize_dynamic_scaled_float8_reference(normed)
    return quantize_static_scaled_float8_reference(normed, scale), scale

"""Activations in plain torch: the definition of correct."""

from collections.abc import Callable, Sequence

import torch

from quire.kernels.activations.coefficients import ERFC, GELU_TANH, SQRT_HALF, TANH, TANH_SPLIT
from quire.kernels.quantize_scaled_float8.reference import (
    quantize_dynamic_scaled_float8_reference,
    quantize_static_scaled_float8_reference,
)


def activation_reference(x_TF: torch.Tensor, kind: str) -> torch.Tensor:
    """As `activation`."""
    return ACTIVATIONS[kind](x_TF.float()).to(x_TF.dtype)


def gated_activation_reference(gate_up_T2F: torch.Tensor, kind: str) -> torch.Tensor:
    """As `gated_activation`."""
    gate, up = gate_up_T2F.float().chunk(2, -1)
    return (ACTIVATIONS[kind](gate) * up).to(gate_up_T2F.dtype)


def gated_activation_quantized_reference(
    gate_up_T2F: torch.Tensor, kind: str, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `gated_activation_quantized`."""
    return quantized(gated_activation_reference(gate_up_T2F, kind), scale)


def quantized(
    activated: torch.Tensor, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations as fp8 and their scales: one per row, or the given one."""
    if scale is None:
        return quantize_dynamic_scaled_float8_reference(activated)
    return quantize_static_scaled_float8_reference(activated, scale), scale


def _polynomial(x: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    result = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result.mul_(x).add_(coefficient)
    return result


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    return x.neg().exp_().add_(1.0).reciprocal_()


def tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh of float32, the same bits at every place."""
    magnitude = x.abs()
    near = _polynomial(x * x, TANH).mul_(x * x).mul_(x).add_(x)
    far = 1.0 - 2.0 / ((2.0 * magnitude).exp_() + 1.0)
    return torch.where(magnitude < TANH_SPLIT, near, far.copysign(x))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    z = x.abs() * SQRT_HALF
    t = (0.5 * z + 1.0).reciprocal_()
    tail = t * (_polynomial(t, ERFC) - z * z).exp_()
    return 0.5 * x * torch.where(x > 0, 2.0 - tail, tail)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    # 0.5 * (1 + tanh(u)) is sigmoid(2u), which loses nothing where tanh is near -1.
    double, cube = GELU_TANH
    return x * _sigmoid(double * (x + cube * (x * x * x)))


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "gelu_quick": lambda x: x * _sigmoid(1.702 * x),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "tanh": tanh,
    "sigmoid": _sigmoid,
}

"""Activations on a CPU: the compiled kernel where it was installed, else torch's."""

import torch

from quire.kernels.activations.reference import (
    activation_reference,
    gated_activation_reference,
    quantized,
)
from quire.kernels.native import library
from quire.kernels.native.row_ops import activation_native, is_native


def activation_cpu(x_TF: torch.Tensor, kind: str) -> torch.Tensor:
    """As `activation`."""
    native = library()
    if native is not None and is_native(x_TF):
        return activation_native(native, x_TF, kind, is_gated=False)
    return activation_reference(x_TF, kind)


def gated_activation_cpu(gate_up_T2F: torch.Tensor, kind: str) -> torch.Tensor:
    """As `gated_activation`."""
    native = library()
    if native is not None and is_native(gate_up_T2F):
        return activation_native(native, gate_up_T2F, kind, is_gated=True)
    return gated_activation_reference(gate_up_T2F, kind)


def gated_activation_quantized_cpu(
    gate_up_T2F: torch.Tensor, kind: str, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `gated_activation_quantized`."""
    return quantized(gated_activation_cpu(gate_up_T2F, kind), scale)

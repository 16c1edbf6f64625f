"""Layer norm on a CPU: the compiled kernel where it was installed, else torch's."""

import torch

from quire.kernels.layer_norm.reference import layer_norm_reference
from quire.kernels.native import library
from quire.kernels.native.row_ops import LAYER, is_native, norm_native


def layer_norm_cpu(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `layer_norm`."""
    native = library()
    if native is not None and is_native(x_TC):
        return norm_native(native, LAYER, x_TC, weight_C, bias_C, epsilon, residual_TC)
    return layer_norm_reference(x_TC, weight_C, bias_C, epsilon, residual_TC)

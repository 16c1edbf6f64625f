"""Dense layer in plain torch: the definition of correct, and the path that is not exact on CUDA."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def linear_reference(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b."""
    return F.linear(x_TK, weight_NK, bias_N)


def linear_reference_with(
    weight_NK: torch.Tensor, bias_N: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x_TK: linear_reference(x_TK, weight_NK, bias_N)

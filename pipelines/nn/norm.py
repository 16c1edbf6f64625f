"""Normalization."""

from typing import Protocol

import torch

from quire.kernels.layer_norm import layer_norm
from quire.kernels.rms_norm import rms_norm


class Norm(Protocol):
    """A norm over the hidden dimension."""

    def __call__(
        self, x_TC: torch.Tensor, residual_TC: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of x + residual, and that sum, which is the next residual."""
        ...


class RMSNorm:
    """Root mean square norm over the hidden dimension (https://arxiv.org/abs/1910.07467).

    `weight_offset` and `multiply_before_cast` as of `kernels.rms_norm`.
    """

    def __init__(
        self,
        weight_C: torch.Tensor,
        epsilon: float,
        *,
        weight_offset: float = 0.0,
        multiply_before_cast: bool = False,
    ) -> None:
        self.weight = weight_C
        self.epsilon = epsilon
        self.weight_offset = weight_offset
        self.multiply_before_cast = multiply_before_cast

    def __call__(
        self, x_TC: torch.Tensor, residual_TC: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return rms_norm(
            x_TC,
            self.weight,
            self.epsilon,
            residual_TC,
            weight_offset=self.weight_offset,
            multiply_before_cast=self.multiply_before_cast,
        )


class LayerNorm:
    """Layer norm over the hidden dimension (https://arxiv.org/abs/1607.06450)."""

    def __init__(self, weight_C: torch.Tensor, bias_C: torch.Tensor | None, epsilon: float) -> None:
        self.weight = weight_C
        self.bias = bias_C
        self.epsilon = epsilon

    def __call__(
        self, x_TC: torch.Tensor, residual_TC: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return layer_norm(x_TC, self.weight, self.bias, self.epsilon, residual_TC)

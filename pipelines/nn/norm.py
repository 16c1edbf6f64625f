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


class HeadLayerNorm:
    """A layer norm of each of the first H heads of a row, each with its own weight and bias.

    Args:
        weight_HD: in the dtype of activations.
        bias_HD: as `weight_HD`, or None.
        epsilon: as of `kernels.layer_norm`.
    """

    def __init__(
        self, weight_HD: torch.Tensor, bias_HD: torch.Tensor | None, epsilon: float
    ) -> None:
        self.weight = weight_HD.float()
        self.bias = None if bias_HD is None else bias_HD.float()
        self.epsilon = epsilon
        self._ones = torch.ones_like(self.weight[0])

    def __call__(self, x_TN: torch.Tensor) -> torch.Tensor:
        """[T, N] in the dtype of x, N at least H * D; what lies behind H * D is left as it is."""
        num_heads, head_dim = self.weight.shape
        width = num_heads * head_dim
        # One row per head, and rounded only after the weight: the kernel has one weight for all.
        rows = x_TN[:, :width].reshape(-1, head_dim).float()
        normed, _ = layer_norm(rows, self._ones, None, self.epsilon)
        normed = normed.view(-1, num_heads, head_dim) * self.weight
        if self.bias is not None:
            normed = normed + self.bias
        return torch.cat([normed.flatten(1).to(x_TN.dtype), x_TN[:, width:]], dim=-1)


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

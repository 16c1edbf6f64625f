"""Normalization."""

import torch

from quire.kernels.rms_norm import rms_norm


class RMSNorm:
    """Root mean square norm over the hidden dimension (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, weight_C: torch.Tensor, epsilon: float) -> None:
        self.weight = weight_C
        self.epsilon = epsilon

    def __call__(
        self, x_TC: torch.Tensor, residual_TC: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of x + residual, and that sum, which is the next residual."""
        return rms_norm(x_TC, self.weight, self.epsilon, residual_TC)

"""Token embedding."""

import torch


class Embedding:
    """Rows of `weight` [V, C] by token id, times `scale` rounded to the weights' dtype (Gemma)."""

    def __init__(self, weight_VC: torch.Tensor, scale: float = 1.0) -> None:
        self.weight = weight_VC
        self._scale = torch.tensor(scale, dtype=weight_VC.dtype, device=weight_VC.device)
        self._is_scaled = scale != 1.0

    def __call__(self, tokens_T: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.embedding(tokens_T, self.weight)
        return rows * self._scale if self._is_scaled else rows

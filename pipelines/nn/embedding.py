"""Token embedding."""

import torch


class Embedding:
    """Rows of `weight` [V, C] by token id, times `scale`.

    `is_scale_rounded`: the scale is first rounded to the weights' dtype (Gemma).
    """

    def __init__(
        self, weight_VC: torch.Tensor, scale: float = 1.0, *, is_scale_rounded: bool = False
    ) -> None:
        self.weight = weight_VC
        self._scale = torch.tensor(scale).to(weight_VC.dtype).item() if is_scale_rounded else scale

    def __call__(self, tokens_T: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.embedding(tokens_T, self.weight)
        return rows if self._scale == 1.0 else rows * self._scale

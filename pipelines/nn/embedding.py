"""Token embedding."""

import torch


class Embedding:
    """Rows of `weight` [V, C] by token id."""

    def __init__(self, weight_VC: torch.Tensor) -> None:
        self.weight = weight_VC

    def __call__(self, tokens_T: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(tokens_T, self.weight)

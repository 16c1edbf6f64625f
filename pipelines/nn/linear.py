"""Dense layers."""

import torch

from quire.kernels.linear import prepare_linear


class Linear:
    """y = x W^T + b. `weight` [N, K] may be several matrices stacked along N, as q, k and v are.

    `exact`: the bits of a row do not depend on the other rows.
    """

    def __init__(
        self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None, *, exact: bool
    ) -> None:
        self.out_dim, self.in_dim = weight_NK.shape
        self._apply = prepare_linear(weight_NK, bias_N, exact=exact)

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self._apply(x_TK)

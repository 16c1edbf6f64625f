"""Dense layers."""

import torch

from quire.kernels.linear import prepare_linear
from quire.kernels.linear.tile_plan import TilePlans


class Linear:
    """y = x W^T + b. `weight` [N, K] may be several matrices stacked along N, as q, k and v are.

    With `plans`, shared by a model's layers, the bits of a row do not depend on the other rows.
    """

    def __init__(
        self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, plans: TilePlans | None
    ) -> None:
        self.out_dim, self.in_dim = weight_NK.shape
        self._apply = prepare_linear(weight_NK, bias_N, exact=plans is not None, plans=plans)

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self._apply(x_TK)

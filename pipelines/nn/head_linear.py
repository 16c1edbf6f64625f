"""A matrix per head: each head's rows times that head's own."""

from collections.abc import Callable

import torch

from quire.kernels.grouped_matmul_ragged import grouped_matmul_ragged
from quire.kernels.grouped_matmul_ragged.prepared import group_layers
from quire.kernels.linear import prepare_linear
from quire.kernels.linear.tile_plan import TilePlans


class PreparedHeads:
    """For a CPU, whose matmuls want weights laid out for it. `plans` as of `Linear`."""

    def __init__(self, weight_HNK: torch.Tensor, plans: TilePlans | None) -> None:
        is_exact = plans is not None
        self._heads = group_layers(
            [prepare_linear(weight_NK, exact=is_exact, plans=plans) for weight_NK in weight_HNK]
        )

    def __call__(self, x_THK: torch.Tensor) -> torch.Tensor:
        """[T, H, K] to [T, H, N]."""
        return self._heads.on_all(x_THK)


class GroupedHeads:
    """All heads in one launch: exactly, as groups of `grouped_matmul_ragged`, or by the library."""

    def __init__(self, weight_HNK: torch.Tensor, *, exact: bool) -> None:
        self._weight = weight_HNK.contiguous()
        heads = len(weight_HNK)
        self._ids = torch.arange(heads, dtype=torch.int32, device=weight_HNK.device)
        self._starts = torch.arange(heads + 1, dtype=torch.int32, device=weight_HNK.device)
        self._is_exact = exact

    def __call__(self, x_THK: torch.Tensor) -> torch.Tensor:
        """[T, H, K] to [T, H, N], which lies by head."""
        x_HTK = x_THK.transpose(0, 1)
        if not self._is_exact:
            return torch.bmm(x_HTK, self._weight.transpose(1, 2)).transpose(0, 1)
        heads, tokens, _ = x_HTK.shape
        out = grouped_matmul_ragged(
            x_HTK.flatten(0, 1).contiguous(), self._weight, self._starts * tokens, self._ids
        )
        return out.view(heads, tokens, -1).transpose(0, 1)


def head_linear(
    weight_HNK: torch.Tensor, plans: TilePlans | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """[T, H, K] to [T, H, N] by `weight_HNK`, where it lies; with `plans` rows are exact."""
    if weight_HNK.is_cuda:
        return GroupedHeads(weight_HNK, exact=plans is not None)
    return PreparedHeads(weight_HNK, plans)

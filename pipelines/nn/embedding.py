"""Token embedding."""

from typing import Protocol

import torch


class Table(Protocol):
    """Gives the vectors of tokens."""

    def __call__(self, tokens_T: torch.Tensor, /) -> torch.Tensor:
        """int32 [T] to [T, C].

        Raises:
            IndexError: a token is not in the table.
        """
        ...


class Embedding:
    """The vectors of `table`, in `dtype`, by token id, times `scale`.

    `is_scale_rounded`: the scale is first rounded to `dtype` (Gemma).
    """

    def __init__(
        self,
        table: Table,
        dtype: torch.dtype,
        scale: float = 1.0,
        *,
        is_scale_rounded: bool = False,
    ) -> None:
        self._table = table
        self._scale = torch.tensor(scale).to(dtype).item() if is_scale_rounded else scale

    def __call__(self, tokens_T: torch.Tensor) -> torch.Tensor:
        rows = self._table(tokens_T)
        return rows if self._scale == 1.0 else rows * self._scale


def plain_table(weight_VC: torch.Tensor) -> Table:
    """Rows of a matrix [V, C]."""
    return lambda tokens_T: torch.nn.functional.embedding(tokens_T, weight_VC)

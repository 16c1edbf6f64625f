"""Where a packed matrix may be cut, for every format."""

from collections.abc import Sequence

import torch


def check_borders(what: str, part: slice, size: int, unit: int) -> None:
    """Raise ValueError unless `part` of `size` begins and ends between units."""
    for place in (part.start, part.stop):
        if place % unit and place != size:
            raise ValueError(f"{what} in units of {unit} cannot be cut at {place} of {size}")


def select_units(
    tensor: torch.Tensor, parts: Sequence[slice], unit: int, dim: int = 0
) -> torch.Tensor:
    """`parts` of a dimension whose every index stands for `unit` places; contiguous."""
    pieces = [
        tensor.narrow(dim, part.start // unit, -(-part.stop // unit) - part.start // unit)
        for part in parts
    ]
    return torch.cat(pieces, dim)

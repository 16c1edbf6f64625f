"""How a weight [N, K] is divided among devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal


@dataclass(frozen=True)
class ShardingStrategy:
    """`rowwise` cuts outputs (tensor-parallel "column parallel": results are gathered),
    `columnwise` inputs (results are summed), `heads` outputs by groups of heads, so that each
    device has whole heads of q, k and v; `replicate` nothing.

    `parts` are the rows of the projections stacked in the weight, each cut alike, and `unit` the
    rows that stay together (head_dim for `heads`).
    """

    kind: Literal["replicate", "rowwise", "columnwise", "heads"]
    num_devices: int
    parts: tuple[int, ...] = ()
    unit: int = 1

    @classmethod
    def replicate(cls, num_devices: int) -> "ShardingStrategy":
        return cls("replicate", num_devices)

    @classmethod
    def rowwise(cls, num_devices: int) -> "ShardingStrategy":
        return cls("rowwise", num_devices)

    @classmethod
    def columnwise(cls, num_devices: int) -> "ShardingStrategy":
        return cls("columnwise", num_devices)

    @classmethod
    def stacked_qkv(
        cls, num_devices: int, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> "ShardingStrategy":
        """Of q, k and v stacked. Fewer key heads than devices are repeated.

        Raises:
            ValueError: there are fewer query heads than devices. Repeated, they would count twice
                in the sum that follows attention.
        """
        if num_heads < num_devices:
            raise ValueError(f"{num_heads} query heads cannot be divided by {num_devices} devices")
        heads = (num_heads, num_kv_heads, num_kv_heads)
        return cls("heads", num_devices, tuple(count * head_dim for count in heads), head_dim)

    @property
    def cuts_rows(self) -> bool:
        """Whether a device has some of the outputs only."""
        return self.kind in ("rowwise", "heads")

    @property
    def is_summed(self) -> bool:
        """Whether the devices' results are to be added up."""
        return self.kind == "columnwise"

    def rows(self, out_dim: int, index: int, parts: Sequence[int] = ()) -> tuple[slice, ...]:
        """The rows of device `index`, in their order; `parts` as the layer's own stacking.

        Raises:
            ValueError: they cannot be divided evenly.
        """
        if not self.cuts_rows:
            return (slice(0, out_dim),)
        sizes = self.parts or tuple(parts) or (out_dim,)
        starts = accumulate(sizes, initial=0)
        return tuple(
            self._share(start, size, index) for start, size in zip(starts, sizes, strict=False)
        )

    def columns(self, in_dim: int, index: int) -> slice:
        """The columns of device `index`.

        Raises:
            ValueError: they cannot be divided evenly.
        """
        if self.kind != "columnwise":
            return slice(0, in_dim)
        if in_dim % self.num_devices:
            raise ValueError(f"{in_dim} columns cannot be divided by {self.num_devices} devices")
        size = in_dim // self.num_devices
        return slice(index * size, (index + 1) * size)

    def _share(self, start: int, size: int, index: int) -> slice:
        units, devices = size // self.unit, self.num_devices
        if self.kind == "heads" and units < devices and devices % units == 0:
            first = start + index * units // devices * self.unit
            return slice(first, first + self.unit)
        if size % self.unit or units % devices:
            raise ValueError(
                f"{size} rows in units of {self.unit} cannot be divided by {devices} devices"
            )
        count = units // devices * self.unit
        return slice(start + index * count, start + (index + 1) * count)

"""Layers that several devices compute together, by tensor parallelism
(https://arxiv.org/abs/1909.08053).

Their inputs and results are lists with a tensor per device. A sum over devices is made in float32,
in the order of the devices, and rounded once: its bits depend on the number of devices, but not on
the other rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from quire.pipelines.nn.linear import Linear, WeightSource
from quire.pipelines.nn.mlp import MLP
from quire.pipelines.nn.sharding import ShardingStrategy


class SharedSource:
    """Gives a tensor of `weights`, which gives it once, to the part of every device."""

    def __init__(self, weights: WeightSource) -> None:
        self._weights = weights
        self._given: dict[str, torch.Tensor] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._given or name in self._weights

    def host(self, name: str) -> torch.Tensor:
        """The tensor as the checkpoint stores it, on the host."""
        if name not in self._given:
            self._given[name] = self._weights.host(name)
        return self._given[name]


class _TiedSource(SharedSource):
    """`weights`, but for the one named `tied`."""

    def __init__(self, weights: WeightSource, tied: str, tensor: torch.Tensor) -> None:
        super().__init__(weights)
        self._given[tied] = tensor


def gather_on_each(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """On each part's device all of them, [T, N / n] side by side: [T, N]."""
    return [torch.cat([other.to(part.device) for other in parts], dim=-1) for part in parts]


def sum_on_each(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """On each part's device the sum of all, in the dtype of the parts."""
    sums = []
    for part in parts:
        total = parts[0].to(part.device, torch.float32)
        for other in parts[1:]:
            total = total + other.to(part.device, torch.float32)
        sums.append(total.to(part.dtype))
    return sums


class ColumnParallelLinear:
    """y = x W^T + b, of which each device computes some of the numbers of y and then has all.

    Args:
        in_dim: K.
        out_dim: N, a multiple of the number of devices.
        dtype: of activations.
        devices: one part of the weight's rows each.
        tied_weight: [N, K], used instead of the checkpoint's (the embedding, for a tied head).
        options: as of `Linear`.

    Raises:
        ValueError: the rows cannot be divided evenly.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        dtype: torch.dtype,
        devices: Iterable[torch.device],
        tied_weight: torch.Tensor | None = None,
        **options: Any,
    ) -> None:
        self._tied_weight = tied_weight
        places = list(devices)
        strategy = ShardingStrategy.rowwise(len(places))
        self.parts = _parts(in_dim, out_dim, dtype, places, strategy, options)

    def load(self, weights: WeightSource) -> "ColumnParallelLinear":
        """Read the weights and place them; returns the layer."""
        if self._tied_weight is None:
            source = SharedSource(weights)
        else:
            name = f"{self.parts[0].name}.weight"
            source = _TiedSource(weights, name, self._tied_weight.cpu())
        for part in self.parts:
            part.load(source)
        return self

    def __call__(self, xs_TK: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same x [T, K] on each device to the same y [T, N] on each."""
        pairs = zip(self.parts, xs_TK, strict=True)
        return gather_on_each([part(x_TK) for part, x_TK in pairs])


class RowParallelLinear:
    """y = x W^T + b, of which each device has some of the numbers of x and then all of y.

    Args:
        in_dim: K, a multiple of the number of devices.
        out_dim: N.
        dtype: of activations.
        devices: one part of the weight's columns each.
        options: as of `Linear`.

    Raises:
        ValueError: the columns cannot be divided evenly.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        dtype: torch.dtype,
        devices: Iterable[torch.device],
        **options: Any,
    ) -> None:
        places = list(devices)
        strategy = ShardingStrategy.columnwise(len(places))
        self.parts = _parts(in_dim, out_dim, dtype, places, strategy, options)

    def load(self, weights: WeightSource) -> "RowParallelLinear":
        """Read the weights and place them; returns the layer."""
        source = SharedSource(weights)
        for part in self.parts:
            part.load(source)
        return self

    def __call__(self, xs_TK: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Each device's share [T, K / n] of x to the same y [T, N] on each."""
        pairs = zip(self.parts, xs_TK, strict=True)
        return sum_on_each([part(x_TK) for part, x_TK in pairs])


class DistributedMLP:
    """The parts of one MLP that was divided `rowwise`, one per device.

    Raises:
        ValueError: there are not as many parts as devices.
    """

    def __init__(self, list_of_mlps: Sequence[MLP], num_devices: int) -> None:
        if len(list_of_mlps) != num_devices:
            raise ValueError(f"{len(list_of_mlps)} parts of an MLP for {num_devices} devices")
        self.list_of_mlps = tuple(list_of_mlps)
        self.num_devices = num_devices

    def load(self, weights: WeightSource) -> "DistributedMLP":
        """Read the weights and place them; returns the layer."""
        source = SharedSource(weights)
        for mlp in self.list_of_mlps:
            mlp.load(source)
        return self

    def __call__(self, xs_TC: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same x [T, C] on each device to the same result [T, C] on each."""
        pairs = zip(self.list_of_mlps, xs_TC, strict=True)
        return sum_on_each([mlp(x_TC) for mlp, x_TC in pairs])


def _parts(
    in_dim: int,
    out_dim: int,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    strategy: ShardingStrategy,
    options: dict[str, Any],
) -> list[Linear]:
    whole = Linear(in_dim, out_dim, dtype, devices[0], **options)
    whole.sharding_strategy = strategy
    return whole.shard(devices)

"""The feed-forward part of a transformer block."""

from collections.abc import Iterable

import torch

from quire.kernels.activations import activation, gated_activation
from quire.kernels.swish_glu import swish_glu
from quire.pipelines.nn.linear import StackedLinear, WeightSource
from quire.pipelines.nn.sharding import ShardingStrategy


class MLP:
    """down(activation(gate(x)) * up(x)) (https://arxiv.org/abs/2002.05202), gate and up in one
    matrix; not gated: down(activation(up(x)))."""

    def __init__(self, up: StackedLinear, down: StackedLinear, activation_function: str) -> None:
        self.up = up
        self.down = down
        self.activation_function = activation_function
        self.is_gated = len(up.out_dims) == 2

    @property
    def sharding_strategy(self) -> ShardingStrategy | None:
        """`rowwise`: each device has a share of the inner numbers, and results are to be summed;
        `replicate`: each device has the whole."""
        return self.up.sharding_strategy

    @sharding_strategy.setter
    def sharding_strategy(self, strategy: ShardingStrategy) -> None:
        if strategy.kind not in ("rowwise", "replicate"):
            raise ValueError(f"an MLP is divided rowwise or replicated, not {strategy.kind}")
        is_cut = strategy.kind == "rowwise"
        self.up.sharding_strategy = strategy
        self.down.sharding_strategy = (
            ShardingStrategy.columnwise(strategy.num_devices) if is_cut else strategy
        )

    def shard(self, devices: Iterable[torch.device]) -> list["MLP"]:
        """The parts of this layer, one per device, none of them loaded.

        Raises:
            ValueError: as of `Linear.shard`.
        """
        places = list(devices)
        pairs = zip(self.up.shard(places), self.down.shard(places), strict=True)
        return [MLP(up, down, self.activation_function) for up, down in pairs]

    def load(self, weights: WeightSource) -> "MLP":
        """Read the weights and place them; returns the layer."""
        self.up.load(weights)
        self.down.load(weights)
        return self

    def __call__(self, x_TC: torch.Tensor) -> torch.Tensor:
        return self.down(self._activate(self.up(x_TC)))

    def _activate(self, x_TF: torch.Tensor) -> torch.Tensor:
        if not self.is_gated:
            return activation(x_TF, self.activation_function)
        if self.activation_function == "silu":
            return swish_glu(x_TF)
        return gated_activation(x_TF, self.activation_function)

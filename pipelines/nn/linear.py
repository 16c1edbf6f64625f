"""The `Linear` family: declared by sizes and names, loaded from a checkpoint, then called.

The one place that knows quantization (through `LinearWeight`) and sharding.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from quire.kernels.linear.tile_plan import TilePlans
from quire.pipelines.architectures.encodings import DENSE, Encoding
from quire.pipelines.architectures.quant_config import QuantConfig
from quire.pipelines.nn.linear_weight import WEIGHT_KINDS, Apply, DenseWeight, LinearWeight
from quire.pipelines.nn.sharding import ShardingStrategy


class WeightSource(Protocol):
    """Where layers get their weights."""

    def __contains__(self, name: object, /) -> bool: ...

    def host(self, name: str) -> torch.Tensor:
        """The tensor as the checkpoint stores it, on the host; each is given once."""
        ...


class Linear:
    """y = x W^T + b.

    Until `load` a layer is only sizes and names, so that `shard` costs nothing and a device's part
    is all that is placed on it. With `plans`, shared by a model's layers, the bits of a row do not
    depend on the other rows.

    Args:
        in_dim: K.
        out_dim: N.
        dtype: of activations.
        device: where the layer computes.
        has_bias: whether there is a `{name}.bias`.
        quantization_encoding: how the weights are stored; None: as `quant_config` says of `name`.
        quant_config: that of the checkpoint; None: plain numbers.
        name: what the checkpoint calls the layer.
        clip_weight: weights are limited to +- this; plain numbers only.
        plans: see above; None lets bits depend on other rows.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        has_bias: bool = False,
        *,
        quantization_encoding: Encoding | None = None,
        quant_config: QuantConfig | None = None,
        name: str | None = None,
        clip_weight: float | None = None,
        plans: TilePlans | None = None,
    ) -> None:
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.dtype = dtype
        self.device = device
        self.has_bias = has_bias
        self.name = name or "linear"
        self.encoding = quantization_encoding or (
            quant_config.encoding_of(self.name) if quant_config else DENSE
        )
        self.clip_weight = clip_weight
        self.sharding_strategy: ShardingStrategy | None = None
        self._plans = plans
        self._shard: tuple[ShardingStrategy, int] | None = None
        self._whole = (out_dim, in_dim)
        self._apply: Apply | None = None
        if clip_weight is not None and type(self.encoding) is not Encoding:
            raise ValueError(f"{self.name}: {self.encoding.name} weights cannot be clipped")

    def shard(self, devices: Iterable[torch.device]) -> list["Linear"]:
        """The parts of this layer, one per device, none of them loaded.

        Raises:
            ValueError: there is no `sharding_strategy`, or it is for another number of devices.
        """
        strategy, places = self.sharding_strategy, list(devices)
        if strategy is None or strategy.num_devices != len(places):
            raise ValueError(f"{self.name}: sharding_strategy {strategy} for {len(places)} devices")
        return [self._part(strategy, index, device) for index, device in enumerate(places)]

    def _part(self, strategy: ShardingStrategy, index: int, device: torch.device) -> "Linear":
        rows = strategy.rows(self.out_dim, index)
        columns = strategy.columns(self.in_dim, index)
        part = type(self)(
            columns.stop - columns.start,
            sum(part.stop - part.start for part in rows),
            self.dtype,
            device,
            # A bias is added once to a sum.
            self.has_bias and not (strategy.is_summed and index),
            quantization_encoding=self.encoding,
            name=self.name,
            clip_weight=self.clip_weight,
            plans=self._plans,
        )
        part._shard = (strategy, index)
        part._whole = (self.out_dim, self.in_dim)
        return part

    def load(self, weights: WeightSource) -> "Linear":
        """Read the weights and place them; returns the layer."""
        weight, bias = self.read(weights)
        self._apply = weight.prepare(bias, self.device, self._plans)
        return self

    def read(self, weights: WeightSource) -> tuple[LinearWeight, torch.Tensor | None]:
        """The weights on the host, this device's part of them; bias in `dtype`."""
        tensors = {
            suffix: weights.host(full)
            for suffix in self.encoding.tensors(*self._whole)
            if (full := f"{self.name}.{suffix}") in weights
        }
        weight = WEIGHT_KINDS[type(self.encoding)].from_tensors(self.encoding, tensors, self.dtype)
        bias = weights.host(f"{self.name}.bias").to(self.dtype) if self.has_bias else None
        if self.clip_weight is not None:
            limit = self.clip_weight
            weight = DenseWeight(weight.dense().clamp(-limit, limit))
        if self._shard is None:
            return weight, bias
        strategy, index = self._shard
        rows = strategy.rows(weight.out_dim, index)
        if bias is not None:
            bias = torch.cat([bias[part] for part in rows])
        return weight.select(rows, strategy.columns(weight.in_dim, index)), bias

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[T, K] to [T, N] in the dtype of the layer."""
        if self._apply is None:
            raise RuntimeError(f"{self.name}: called before load")
        return self._apply(x_TK)


class StackedLinear:
    """Projections of the same input as one matrix: q, k and v, or gate and up.

    Args:
        in_dim: K.
        out_dims: rows of each projection.
        names: what the checkpoint calls each; with `stacked` one name for all.
        dtype, device, quant_config, clip_weight, plans: as of `Linear`.
        stacked: the checkpoint stores them as one weight.
        has_bias: whether each has a bias.
        linear_cls: the class of the children.
        quantization_encoding: as of `Linear`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dims: Sequence[int],
        names: Sequence[str],
        dtype: torch.dtype,
        device: torch.device,
        stacked: bool = False,
        has_bias: bool = False,
        *,
        linear_cls: Callable[..., Linear] = Linear,
        quant_config: QuantConfig | None = None,
        clip_weight: float | None = None,
        quantization_encoding: Encoding | None = None,
        plans: TilePlans | None = None,
    ) -> None:
        self.in_dim = in_dim
        self.out_dims = tuple(out_dims)
        self.stacked = stacked
        sizes = (sum(out_dims),) if stacked else self.out_dims
        self.children = [
            linear_cls(
                in_dim,
                size,
                dtype,
                device,
                has_bias,
                quantization_encoding=quantization_encoding,
                quant_config=quant_config,
                name=name,
                clip_weight=clip_weight,
                plans=plans,
            )
            for name, size in zip(names, sizes, strict=True)
        ]
        self.device = device
        self._plans = plans
        self._applies: list[Apply] = []

    @property
    def out_dim(self) -> int:
        return sum(self.out_dims)

    def load(self, weights: WeightSource) -> "StackedLinear":
        """Read the children and place them, as one matrix where their encodings allow."""
        read = [child.read(weights) for child in self.children]
        kinds = {type(weight) for weight, _ in read}
        stack = read[0][0].stack([weight for weight, _ in read]) if len(kinds) == 1 else None
        if stack is not None:
            biases = [bias for _, bias in read if bias is not None]
            read = [(stack, torch.cat(biases) if biases else None)]
        self._applies = [weight.prepare(bias, self.device, self._plans) for weight, bias in read]
        return self

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[T, K] to [T, N], the projections side by side."""
        if not self._applies:
            raise RuntimeError(f"{self.children[0].name}: called before load")
        parts = [apply(x_TK) for apply in self._applies]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

"""The `Linear` family: declared by sizes and names, loaded from a checkpoint, then called.

The one place that knows quantization (through `LinearWeight`) and sharding.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from itertools import accumulate
from typing import Protocol

import torch

from quire.config.errors import ModelError
from quire.kernels.linear import PreparedLinear
from quire.kernels.linear.cpu_native import CompiledLinear
from quire.kernels.linear.tile_plan import TilePlans
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig
from quire.pipelines.nn.linear_weight import Apply, DenseWeight, LinearWeight
from quire.pipelines.nn.sharding import ShardingStrategy
from quire.pipelines.nn.weight_kinds import WEIGHT_KINDS


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
        row_order: runs of the checkpoint's rows in the order they are meant; empty: as stored.
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
        row_order: Sequence[slice] = (),
    ) -> None:
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.dtype = dtype
        self.device = device
        self.has_bias = has_bias
        self.name = name or "linear"
        quant = quant_config or UNQUANTIZED
        self.encoding = (
            quant.encoding_of(self.name)
            if quantization_encoding is None
            else quant.encoding_over(self.name, quantization_encoding)
        )
        self.clip_weight = clip_weight
        self.sharding_strategy: ShardingStrategy | None = None
        self._plans = plans
        self._row_order = tuple(row_order)
        self._shard: tuple[ShardingStrategy, int] | None = None
        self._whole = (out_dim, in_dim)
        self._is_biased = True
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
            self.has_bias,
            quantization_encoding=self.encoding,
            name=self.name,
            clip_weight=self.clip_weight,
            plans=self._plans,
            row_order=self._row_order,
        )
        part._shard = (strategy, index)
        part._whole = (self.out_dim, self.in_dim)
        # A bias is added once to a sum.
        part._is_biased = not (strategy.is_summed and index)
        return part

    def load(self, weights: WeightSource) -> "Linear":
        """Read the weights and place them; returns the layer."""
        weight, bias = self.read(weights)
        self._apply = weight.prepare(bias, self.device, self._plans)
        return self

    def read(self, weights: WeightSource) -> tuple[LinearWeight, torch.Tensor | None]:
        """The weights on the host, this device's part of them; bias in `dtype`.

        Raises:
            ModelError: a weight cannot be read, or has numbers that its encoding cannot have.
            ValueError: the encoding cannot be cut for this device.
        """
        suffixes = dict.fromkeys(self.encoding.tensors(*self._whole))
        if self.has_bias:
            suffixes["bias"] = None
        tensors = {
            suffix: weights.host(full)
            for suffix in suffixes
            if (full := f"{self.name}.{suffix}") in weights
        }
        bias = tensors.pop("bias", None)
        bias = None if bias is None or not self._is_biased else bias.to(self.dtype)
        kind = WEIGHT_KINDS[type(self.encoding)]
        try:
            weight: LinearWeight = kind.from_tensors(self.encoding, tensors, self.dtype)
            if self._row_order:
                weight, bias = _select(weight, bias, self._row_order, slice(0, weight.in_dim))
        except ValueError as error:
            raise ModelError(f"{self.name}: {error}") from None
        if self.clip_weight is not None:
            limit = self.clip_weight
            weight = DenseWeight(weight.dense().clamp(-limit, limit))
        if self._shard is None:
            return weight, bias
        strategy, index = self._shard
        rows = strategy.rows(weight.out_dim, index)
        try:
            return _select(weight, bias, rows, strategy.columns(weight.in_dim, index))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[T, K] to [T, N] in the dtype of the layer."""
        if self._apply is None:
            raise RuntimeError(f"{self.name}: called before load")
        return self._apply(x_TK)


def _select(
    weight: LinearWeight, bias: torch.Tensor | None, rows: Sequence[slice], columns: slice
) -> tuple[LinearWeight, torch.Tensor | None]:
    # Runs that follow each other may meet where the encoding cannot be cut.
    runs = list(rows[:1])
    for part in rows[1:]:
        if part.start == runs[-1].stop:
            runs[-1] = slice(runs[-1].start, part.stop)
        else:
            runs.append(part)
    if bias is not None:
        bias = torch.cat([bias[part] for part in runs])
    return weight.select(runs, columns), bias


def _greatest(scales: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    found = [scale for scale in scales if scale is not None]
    return torch.stack(found).amax() if found else None


def row_order_of_groups(out_dims: Sequence[int], num_groups: int) -> tuple[slice, ...]:
    """Where the rows of each projection lie in a matrix of `num_groups` runs, each with its share
    of every projection; in the order of the projections."""
    shares = [size // num_groups for size in out_dims]
    starts = accumulate(shares, initial=0)
    return tuple(
        slice(group * sum(shares) + start, group * sum(shares) + start + share)
        for start, share in zip(starts, shares, strict=False)
        for group in range(num_groups)
    )


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
        num_groups: the one weight has its rows in so many runs (`row_order_of_groups`).
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
        num_groups: int = 1,
    ) -> None:
        self.in_dim = in_dim
        self.out_dims = tuple(out_dims)
        self.stacked = stacked
        sizes = (sum(out_dims),) if stacked else self.out_dims
        order = row_order_of_groups(out_dims, num_groups) if num_groups > 1 else ()
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
                row_order=order,
            )
            for name, size in zip(names, sizes, strict=True)
        ]
        self.device = device
        self._plans = plans
        self._strategy: ShardingStrategy | None = None
        self._read: list[tuple[LinearWeight, torch.Tensor | None]] = []
        self._applies: list[Apply] = []

    @property
    def out_dim(self) -> int:
        return sum(self.out_dims)

    @property
    def sharding_strategy(self) -> ShardingStrategy | None:
        """How `shard` divides each projection; it is set for all of them at once."""
        return self._strategy

    @sharding_strategy.setter
    def sharding_strategy(self, strategy: ShardingStrategy) -> None:
        if strategy.parts not in ((), self.out_dims):
            raise ValueError(f"{self.children[0].name}: {strategy.parts} are not {self.out_dims}")
        self._strategy = strategy
        parts = [self.out_dims] if self.stacked else [(size,) for size in self.out_dims]
        for child, rows in zip(self.children, parts, strict=True):
            child.sharding_strategy = replace(strategy, parts=rows)

    def shard(self, devices: Iterable[torch.device]) -> list["StackedLinear"]:
        """The parts of this layer, one per device: of every projection its share, none loaded.

        Raises:
            ValueError: as of `Linear.shard`, or a projection cannot be divided.
        """
        places = list(devices)
        by_child = [child.shard(places) for child in self.children]
        return [
            self._part(index, device, [parts[index] for parts in by_child])
            for index, device in enumerate(places)
        ]

    def _part(self, index: int, device: torch.device, children: list[Linear]) -> "StackedLinear":
        assert self._strategy is not None
        rows = self._strategy.rows(self.out_dim, index, self.out_dims)
        part = copy(self)
        part.in_dim, part.device, part.children = children[0].in_dim, device, children
        if self._strategy.cuts_rows:
            part.out_dims = tuple(run.stop - run.start for run in rows)
        part._strategy, part._read, part._applies = None, [], []
        return part

    def load(self, weights: WeightSource) -> "StackedLinear":
        """Read the children and place them, as one matrix where their encodings allow."""
        return self.read(weights).place()

    def read(self, weights: WeightSource) -> "StackedLinear":
        """Read the children; until `place` the properties `stacked_...` tell what was read."""
        self._read = [child.read(weights) for child in self.children]
        return self

    def place(self) -> "StackedLinear":
        """Lay out on the device what was read, and let go of the rest."""
        stack, whole = self._stack(), self._read
        if stack is None and not any(part.is_packed_on(self.device) for part, _ in whole):
            stack = DenseWeight(*(part.dense() for part, _ in whole))
        if stack is not None:
            whole = [(stack, self.stacked_bias)]
        self._read = []
        self._applies = [weight.prepare(bias, self.device, self._plans) for weight, bias in whole]
        return self

    @property
    def stacked_weight(self) -> torch.Tensor:
        """The matrix of all projections as it is stored.

        Raises:
            ValueError: they cannot be one.
        """
        return self._one().weight

    @property
    def stacked_bias(self) -> torch.Tensor | None:
        """The biases side by side, zeros where only others have one; None without any."""
        if all(bias is None for _, bias in self._read):
            return None
        return torch.cat(
            [
                torch.zeros(weight.out_dim, dtype=child.dtype) if bias is None else bias
                for child, (weight, bias) in zip(self.children, self._read, strict=True)
            ]
        )

    @property
    def stacked_weight_scale(self) -> torch.Tensor | None:
        """The scales of `stacked_weight`; of fp8 one per row, where a projection has one.

        Raises:
            ValueError: as of `stacked_weight`.
        """
        return self._one().weight_scale

    @property
    def stacked_weight_scale_2(self) -> torch.Tensor | None:
        """The greatest of the projections' scales of the whole (NVFP4)."""
        return _greatest([weight.weight_scale_2 for weight, _ in self._read])

    @property
    def stacked_input_scale(self) -> torch.Tensor | None:
        """The greatest of the projections' scales of the input."""
        return _greatest([weight.input_scale for weight, _ in self._read])

    def _stack(self) -> LinearWeight | None:
        if not self._read:
            raise RuntimeError(f"{self.children[0].name}: not between read and place")
        parts = [weight for weight, _ in self._read]
        if len(parts) == 1:
            return parts[0]
        return parts[0].stack(parts) if len({type(part) for part in parts}) == 1 else None

    def _one(self) -> LinearWeight:
        stack = self._stack()
        if stack is None:
            raise ValueError(f"{self.children[0].name} and the others cannot be one matrix")
        return stack

    @property
    def native(self) -> CompiledLinear | None:
        """The compiled layer, where one is all that a call runs."""
        applies = [
            apply.apply if isinstance(apply, PreparedLinear) else apply for apply in self._applies
        ]
        if len(applies) == 1 and isinstance(applies[0], CompiledLinear):
            return applies[0]
        return None

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[T, K] to [T, N], the projections side by side."""
        if not self._applies:
            raise RuntimeError(f"{self.children[0].name}: called before load")
        parts = [apply(x_TK) for apply in self._applies]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

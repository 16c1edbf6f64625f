"""Reads the experts of a mixture from the checkpoint and lays them out for their device."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch

from quire.kernels.fp4 import dequantize_mxfp4
from quire.kernels.linear import PreparedLinear, prepare_linear
from quire.kernels.linear.tile_plan import TilePlans
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.moe_parts import (
    ExpertsSpec,
    Mxfp4Experts,
    SeparateExperts,
    StackedExperts,
)
from quire.pipelines.architectures.parts import LinearSpec
from quire.pipelines.architectures.quant_config import QuantConfig
from quire.pipelines.nn.experts import Experts, GroupedExperts, Matrix, PreparedExperts
from quire.pipelines.nn.linear import Linear, StackedLinear
from quire.pipelines.nn.mxfp4 import as_float8
from quire.pipelines.nn.quantized.float8 import Float8Weight
from quire.pipelines.weights.loader import WeightLoader


@dataclass(frozen=True)
class ExpertLoader:
    """`plans` as of `Linear`. Host memory: a projection of a layer beside what is laid out.

    The grouped matmul of a GPU takes fp8 and no other packed numbers. So fp8 stays as it is there,
    though activations are not quantized, and MXFP4 becomes fp8 with a scale per row (`as_float8`).
    All else, and all on a CPU, becomes plain numbers in the dtype of the model.
    """

    weights: WeightLoader
    quant: QuantConfig
    plans: TilePlans | None

    def load(self, spec: ExpertsSpec) -> Experts:
        """Raises ModelError for a weight that cannot be read or is not finite."""
        if self.weights.device.type == "cpu":
            return self.prepared(spec)
        return self.grouped(spec)

    def prepared(self, spec: ExpertsSpec) -> PreparedExperts:
        """For a CPU: a layer per expert."""
        up, down = self._projections(spec)
        return PreparedExperts(spec, self._layers(up), self._layers(down))

    def grouped(self, spec: ExpertsSpec) -> GroupedExperts:
        """For a GPU: matrices of all experts."""
        up, down = self._projections(spec, may_pack=True)
        return GroupedExperts(spec, self._stacked(spec, up), self._stacked(spec, down))

    def _projections(
        self, spec: ExpertsSpec, *, may_pack: bool = False
    ) -> tuple[Iterator[Matrix], Iterator[Matrix]]:
        """Gate and up, and down, each expert by expert."""
        match spec:
            case SeparateExperts():
                experts = range(spec.num_experts)
                read = self._separate
                if may_pack and spec.is_float8(self.quant):
                    read = self._separate_float8
                return (
                    (read(spec.up(expert)) for expert in experts),
                    (read(spec.down(expert)) for expert in experts),
                )
            case StackedExperts():
                up, down = (self._of_stack(spec, name, may_pack) for name, *_ in spec.projections)
                return up, down
        raise TypeError(f"no reader for {type(spec).__name__}")

    def _children(self, spec: LinearSpec) -> list[Linear]:
        return StackedLinear(
            spec.in_dim,
            spec.out_dims,
            spec.names,
            self.weights.dtype,
            self.weights.device,
            stacked=len(spec.names) == 1,
            has_bias=spec.has_bias,
            quant_config=self.quant,
        ).children

    def _separate(self, spec: LinearSpec) -> Matrix:
        weights, biases = [], []
        for child in self._children(spec):
            weight, bias = child.read(self.weights)
            weights.append(weight.dense())
            if type(child.encoding) is Encoding:
                self.weights.check_finite(f"{child.name}.weight", weights[-1])
            if bias is not None:
                biases.append(bias)
        return Matrix(torch.cat(weights), torch.cat(biases) if biases else None)

    def _separate_float8(self, spec: LinearSpec) -> Matrix:
        read = [child.read(self.weights) for child in self._children(spec)]
        weights = [weight for weight, _ in read if isinstance(weight, Float8Weight)]
        biases = [bias for _, bias in read if bias is not None]
        whole = Float8Weight.stack(weights)
        if whole is None:
            raise TypeError(f"{spec.names}: fp8 scales that cannot be stacked")
        return Matrix(whole.weight, torch.cat(biases) if biases else None, whole.weight_scale)

    def _of_stack(self, spec: StackedExperts, name: str, may_pack: bool) -> Iterator[Matrix]:
        bias_EN = None
        if spec.has_bias:
            bias_EN = self.weights.host(f"{name}_bias").to(self.weights.dtype)
            self.weights.check_finite(f"{name}_bias", bias_EN)
        is_packed = isinstance(spec, Mxfp4Experts)
        matrices = self._of_mxfp4(name, may_pack) if is_packed else self._of_numbers(name)
        for expert, (weight_NK, scale_N1) in enumerate(matrices):
            yield Matrix(weight_NK, None if bias_EN is None else bias_EN[expert], scale_N1)

    def _of_numbers(self, name: str) -> Iterator[tuple[torch.Tensor, None]]:
        for stored_KN in self.weights.host(name):
            weight_KN = stored_KN.to(self.weights.device, self.weights.dtype)
            self.weights.check_finite(name, weight_KN)
            yield weight_KN.t(), None

    def _of_mxfp4(
        self, name: str, may_pack: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        blocks_E = self.weights.host(f"{name}_blocks")
        scales_E = self.weights.host(f"{name}_scales")
        device, dtype = self.weights.device, self.weights.dtype
        for blocks, scales in zip(blocks_E, scales_E, strict=True):
            packed, scales = blocks.flatten(1).to(device), scales.to(device)
            if may_pack:
                weight_NK, scale_N1 = as_float8(packed, scales)
                self.weights.check_finite(f"{name}_scales", scale_N1)
                yield weight_NK, scale_N1
            else:
                weight_NK = dequantize_mxfp4(packed, scales, dtype)
                self.weights.check_finite(f"{name}_scales", weight_NK)
                yield weight_NK, None

    def _layers(self, matrices: Iterator[Matrix]) -> list[PreparedLinear]:
        is_exact = self.plans is not None
        return [
            prepare_linear(part.weight.contiguous(), part.bias, exact=is_exact, plans=self.plans)
            for part in matrices
        ]

    def _stacked(self, spec: ExpertsSpec, matrices: Iterator[Matrix]) -> Matrix:
        first = next(matrices)

        def room(one: torch.Tensor) -> torch.Tensor:
            shape = (spec.num_experts, *one.shape)
            return torch.empty(shape, dtype=one.dtype, device=self.weights.device)

        stack = Matrix(
            room(first.weight),
            None if first.bias is None else room(first.bias),
            None if first.scale is None else room(first.scale),
        )
        for expert, parts in enumerate(chain((first,), matrices)):
            for whole, part in zip(stack, parts, strict=True):
                if whole is not None and part is not None:
                    whole[expert].copy_(part)
        return stack

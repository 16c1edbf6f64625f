"""A mixture of experts as data: its router, its experts, and what every token meets beside them.

No torch. `pipelines/nn/moe.py` computes it.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from quire.pipelines.architectures.encodings import DENSE, ITEM_BYTES, Encoding, TensorSpec
from quire.pipelines.architectures.parts import (
    FeedForwardSpec,
    LinearSpec,
    MLPSpec,
    TensorPart,
    WeightOwner,
    weight_owners,
)
from quire.pipelines.architectures.quant_config import QuantConfig
from quire.pipelines.architectures.quantized.float8 import BLOCK, Float8Encoding

Scoring = Literal["softmax", "softmax_top_k", "sigmoid"]
GroupScore = Literal["max", "top2_sum"]


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """gate * sigmoid(alpha * gate) * (up + up_offset), gate cut at `limit` and up at +- `limit`.

    The defaults are SwiGLU (https://arxiv.org/abs/2002.05202).
    """

    alpha: float = 1.0
    limit: float | None = None
    up_offset: float = 0.0


SWIGLU = GateSpec()


@dataclass(frozen=True, kw_only=True)
class RouterSpec(LinearSpec):
    """From a token to a logit per expert; `in_float32`: whatever the dtype of the model.

    Quantized checkpoints have it in plain numbers, whether they say so or not.
    """

    encoding: Encoding | None = DENSE
    in_float32: bool = False

    def device_bytes(self, quant: QuantConfig, dtype: str, device_type: str) -> int:
        return super().device_bytes(quant, "float32" if self.in_float32 else dtype, device_type)


@dataclass(frozen=True, kw_only=True)
class ExpertsSpec(WeightOwner):
    """The experts of a layer, `top_k` of which a token meets: down(gated(gate(x), up(x))).

    `prefix` ends in a dot: `model.layers.0.mlp.experts.`. Subclasses say how they are stored; on
    the device they are plain numbers, gate and up of an expert in one matrix.
    """

    prefix: str
    num_experts: int
    top_k: int
    hidden_size: int
    inner_size: int
    has_bias: bool = False
    gate: GateSpec = SWIGLU

    @property
    @abstractmethod
    def is_interleaved(self) -> bool:
        """Whether gate and up alternate in the rows, rather than follow each other."""

    @property
    def num_parameters(self) -> int:
        matrices = 3 * self.inner_size * self.hidden_size
        biases = self.has_bias * (2 * self.inner_size + self.hidden_size)
        return self.num_experts * (matrices + biases)

    @property
    def num_active_parameters(self) -> int:
        return self.num_parameters * self.top_k // self.num_experts

    @property
    def width(self) -> int:
        """Numbers per token that exist at once."""
        return self.top_k * (3 * self.inner_size + self.hidden_size)


@dataclass(frozen=True, kw_only=True)
class SeparateExperts(ExpertsSpec):
    """A layer per expert and projection: `{prefix}{expert}.{gate_name}`."""

    gate_name: str = "gate_proj"
    up_name: str = "up_proj"
    down_name: str = "down_proj"

    @property
    def is_interleaved(self) -> bool:
        return False

    def up(self, expert: int) -> LinearSpec:
        """Gate and up of one expert."""
        return LinearSpec(
            names=tuple(f"{self.prefix}{expert}.{name}" for name in (self.gate_name, self.up_name)),
            in_dim=self.hidden_size,
            out_dims=(self.inner_size, self.inner_size),
            has_bias=self.has_bias,
        )

    def down(self, expert: int) -> LinearSpec:
        return LinearSpec(
            names=(f"{self.prefix}{expert}.{self.down_name}",),
            in_dim=self.inner_size,
            out_dims=(self.hidden_size,),
            has_bias=self.has_bias,
        )

    def is_float8(self, quant: QuantConfig) -> bool:
        """Whether all are fp8 with scales that the matrices of gate and up can share.

        A GPU then keeps them so; of other packed numbers it has the dequantized ones.
        """
        modules = [
            name
            for expert in range(self.num_experts)
            for part in (self.up(expert), self.down(expert))
            for name in part.names
        ]
        encodings = {quant.encoding_of(name) for name in modules}
        first = next(iter(encodings))
        if len(encodings) > 1 or not isinstance(first, Float8Encoding):
            return False
        return not first.config.is_block or self.inner_size % BLOCK == 0

    def device_bytes(self, quant: QuantConfig, dtype: str, device_type: str) -> int:
        plain = super().device_bytes(quant, dtype, device_type)
        if device_type == "cpu" or not self.is_float8(quant):
            return plain
        numbers = 3 * self.inner_size * self.hidden_size
        scales = sum(self._scales(part, quant) for part in (self.up(0), self.down(0)))
        return plain - self.num_experts * ((ITEM_BYTES[dtype] - 1) * numbers - 4 * scales)

    @staticmethod
    def _scales(part: LinearSpec, quant: QuantConfig) -> int:
        encoding = quant.encoding_of(part.names[0])
        is_block = isinstance(encoding, Float8Encoding) and encoding.config.is_block
        return -(-part.out_dim // BLOCK) * -(-part.in_dim // BLOCK) if is_block else part.out_dim

    def tensors(self, quant: QuantConfig) -> dict[str, TensorSpec]:
        found: dict[str, TensorSpec] = {}
        for expert in range(self.num_experts):
            found.update(self.up(expert).tensors(quant))
            found.update(self.down(expert).tensors(quant))
        return found


@dataclass(frozen=True, kw_only=True)
class StackedExperts(ExpertsSpec):
    """All experts in `{prefix}gate_up_proj` and `{prefix}down_proj`, stored as [E, K, N].

    Biases are `{prefix}gate_up_proj_bias` [E, N] and so on.
    """

    interleaved: bool = False

    @property
    def is_interleaved(self) -> bool:
        return self.interleaved

    @property
    def projections(self) -> tuple[tuple[str, int, int], ...]:
        """Name, outputs N and inputs K of each."""
        return (
            (f"{self.prefix}gate_up_proj", 2 * self.inner_size, self.hidden_size),
            (f"{self.prefix}down_proj", self.hidden_size, self.inner_size),
        )

    def tensors(self, quant: QuantConfig) -> dict[str, TensorSpec]:
        found: dict[str, TensorSpec] = {}
        for name, out_dim, in_dim in self.projections:
            found.update(self.matrices(name, out_dim, in_dim))
            if self.has_bias:
                found[f"{name}_bias"] = TensorSpec((self.num_experts, out_dim))
        return found

    def matrices(self, name: str, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        """The tensors of one projection but its bias."""
        return {name: TensorSpec((self.num_experts, in_dim, out_dim))}


MXFP4_BLOCK = 32
"""Numbers that share a scale (OCP Microscaling Formats, MX v1.0)."""


@dataclass(frozen=True, kw_only=True)
class Mxfp4Experts(StackedExperts):
    """Stacked experts in MXFP4, as GPT-OSS is released: two numbers a byte, [E, N, K / 32, 16] in
    `{name}_blocks`, and the exponent of every 32 numbers, plus 127, in `{name}_scales`."""

    def matrices(self, name: str, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        scales = (self.num_experts, out_dim, in_dim // MXFP4_BLOCK)
        return {
            f"{name}_blocks": TensorSpec((*scales, MXFP4_BLOCK // 2), ("U8",)),
            f"{name}_scales": TensorSpec(scales, ("U8",)),
        }

    def device_bytes(self, quant: QuantConfig, dtype: str, device_type: str) -> int:
        """A GPU has a byte per number, and a float32 for each row of a matrix."""
        plain = super().device_bytes(quant, dtype, device_type)
        if device_type == "cpu":
            return plain
        rows = sum(out_dim for _, out_dim, _ in self.projections)
        numbers = sum(out_dim * in_dim for _, out_dim, in_dim in self.projections)
        return plain - self.num_experts * ((ITEM_BYTES[dtype] - 1) * numbers - 4 * rows)


@dataclass(frozen=True, kw_only=True)
class MoESpec(FeedForwardSpec):
    """A mixture of experts: of all experts each token meets those its router chooses.

    Choice and weights are those of `kernels.moe_router`, whose options these are. A token's
    weights multiply what its experts give, with `weights_input` what they are given (Llama 4).
    `shared` is met by every token, its result times sigmoid(shared_gate(x)) where there is one.
    """

    router: RouterSpec
    correction_bias: TensorPart | None = None
    experts: ExpertsSpec
    shared: MLPSpec | None = None
    shared_gate: LinearSpec | None = None
    scoring: Scoring = "softmax"
    renormalize: bool = False
    num_groups: int = 1
    top_k_groups: int = 1
    group_score: GroupScore = "max"
    routed_scaling: float = 1.0
    weights_input: bool = False

    @property
    def width(self) -> int:
        return self.experts.width + (self.shared.width if self.shared else 0)


def expert_notes(part: object, quant: QuantConfig, device_type: str) -> tuple[str, ...]:
    """What the log of the start says of packed experts, which a GPU computes with in fp8 only."""
    if device_type == "cpu":
        return ()
    names = {
        quant.encoding_of(owner.down(0).names[0]).name
        for owner in weight_owners(part)
        if isinstance(owner, SeparateExperts) and not owner.is_float8(quant)
    }
    packed = sorted(names - {DENSE.name})
    return (f"experts in {', '.join(packed)} are dequantized at load",) if packed else ()

"""The parts a decoder is made of, as data: sizes, options and the checkpoint names of weights.

No torch. `pipelines/nn/` has one layer for each; `build.py` makes it of them. Names are those of
the checkpoint, in full: `model.layers.0.self_attn.q_proj`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from quire.pipelines.architectures.encodings import ITEM_BYTES, Encoding, TensorSpec
from quire.pipelines.architectures.quant_config import QuantConfig
from quire.pipelines.architectures.rope_spec import RopeSpec


class WeightOwner(ABC):
    """A part with weights of its own."""

    @abstractmethod
    def tensors(self, quant: QuantConfig) -> dict[str, TensorSpec]:
        """Checkpoint name to what is expected there, in the order of use."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Numbers that the weights stand for, however they are stored."""

    @property
    def num_active_parameters(self) -> int:
        """Those that one token meets."""
        return self.num_parameters

    def device_bytes(self, quant: QuantConfig, dtype: str, device_type: str) -> int:
        """What the weights take where they are computed with."""
        return self.num_parameters * ITEM_BYTES[dtype]


@dataclass(frozen=True)
class TensorPart(WeightOwner):
    """One tensor of plain numbers."""

    name: str
    shape: tuple[int, ...]

    def tensors(self, quant: QuantConfig) -> dict[str, TensorSpec]:
        return {self.name: TensorSpec(self.shape)}

    @property
    def num_parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class LinearSpec(WeightOwner):
    """y = x W^T + b, its rows one or more projections of the same input, stacked.

    `names` has a name per projection, or one name where the checkpoint stores them stacked: in
    that order, or in `num_groups` runs of rows, each with its share of every projection (GPT-NeoX:
    q, k and v of the first head, of the second, ...).
    `encoding` is set where the architecture, not `quantization_config`, fixes it.
    """

    names: tuple[str, ...]
    in_dim: int
    out_dims: tuple[int, ...]
    has_bias: bool = False
    encoding: Encoding | None = None
    num_groups: int = 1

    @property
    def out_dim(self) -> int:
        return sum(self.out_dims)

    def modules(self) -> tuple[tuple[str, int], ...]:
        """Name and out_dim of each module of the checkpoint."""
        if len(self.names) == 1:
            return ((self.names[0], self.out_dim),)
        return tuple(zip(self.names, self.out_dims, strict=True))

    def encoding_of(self, name: str, quant: QuantConfig) -> Encoding:
        if self.encoding is not None:
            return quant.encoding_over(name, self.encoding)
        return quant.encoding_of(name)

    def tensors(self, quant: QuantConfig) -> dict[str, TensorSpec]:
        found: dict[str, TensorSpec] = {}
        for name, out_dim in self.modules():
            try:
                stored = self.encoding_of(name, quant).tensors(out_dim, self.in_dim)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            found |= {f"{name}.{suffix}": tensor for suffix, tensor in stored.items()}
            if self.has_bias:
                found[f"{name}.bias"] = TensorSpec((out_dim,))
        return found

    @property
    def num_parameters(self) -> int:
        return self.out_dim * (self.in_dim + self.has_bias)

    def device_bytes(self, quant: QuantConfig, dtype: str, device_type: str) -> int:
        matrices = sum(
            self.encoding_of(name, quant).device_bytes(out_dim, self.in_dim, dtype, device_type)
            for name, out_dim in self.modules()
        )
        return matrices + self.has_bias * self.out_dim * ITEM_BYTES[dtype]


@dataclass(frozen=True, kw_only=True)
class NormSpec(WeightOwner):
    """A norm over the last `dim` numbers.

    `weight_offset` is added to the weight, `multiply_before_cast` rounds after it (both Gemma).
    Without `has_weight` the result is not multiplied at all, and the norm has no tensors.
    """

    name: str
    dim: int
    epsilon: float
    kind: Literal["rms", "layer"] = "rms"
    has_weight: bool = True
    has_bias: bool = False
    weight_offset: float = 0.0
    multiply_before_cast: bool = False

    def tensors(self, quant: QuantConfig) -> dict[str, TensorSpec]:
        found = {f"{self.name}.weight": TensorSpec((self.dim,))} if self.has_weight else {}
        if self.has_bias:
            found[f"{self.name}.bias"] = TensorSpec((self.dim,))
        return found

    @property
    def num_parameters(self) -> int:
        return self.dim * (self.has_weight + self.has_bias)


@dataclass(frozen=True, kw_only=True)
class HeadNormSpec(WeightOwner):
    """A layer norm over each head's `dim` numbers (StableLM 2 12B).

    `names` has the norm of each head, the queries' and then the keys'; heads may share one.
    """

    names: tuple[str, ...]
    dim: int
    epsilon: float
    has_bias: bool = False

    def tensors(self, quant: QuantConfig) -> dict[str, TensorSpec]:
        suffixes = ("weight", "bias") if self.has_bias else ("weight",)
        return {
            f"{name}.{suffix}": TensorSpec((self.dim,))
            for name in self.names
            for suffix in suffixes
        }

    @property
    def num_parameters(self) -> int:
        return len(set(self.names)) * self.dim * (1 + self.has_bias)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec(WeightOwner):
    """A row per token id. `name` includes `.weight`.

    `scale` multiplies the rows (Granite); `is_scale_rounded`: in the dtype of the weights (Gemma).
    """

    name: str
    vocab_size: int
    dim: int
    scale: float = 1.0
    is_scale_rounded: bool = False

    def tensors(self, quant: QuantConfig) -> dict[str, TensorSpec]:
        return {self.name: TensorSpec((self.vocab_size, self.dim), quant.embedding_dtypes)}

    @property
    def num_parameters(self) -> int:
        return self.vocab_size * self.dim

    @property
    def num_active_parameters(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class KVLayerSpec:
    """What one layer caches per token: `num_heads` keys of `key_dim` numbers and values of
    `value_dim` (0: the keys serve as values too), of the last `window` tokens or of all."""

    num_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    @property
    def numbers_per_token(self) -> int:
        return self.num_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, kw_only=True)
class SelfAttentionSpec(ABC):
    """What a layer attends with, of whichever kind.

    `chunk_size` c: tokens see keys of their own chunk of positions only, 0..c-1, c..2c-1, ...
    """

    rope: RopeSpec
    chunk_size: int | None = None

    @property
    @abstractmethod
    def kv_layer(self) -> KVLayerSpec:
        """What the layer caches."""

    @property
    @abstractmethod
    def flops_per_key(self) -> int:
        """Multiplications and additions of one token against one key."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers per token that exist at once."""


@dataclass(frozen=True, kw_only=True)
class QueryScale:
    """Queries grow with the position p by 1 + beta * log(1 + (p + offset) // length) (Ministral 3,
    Llama 4); `is_rounded`: by that in the dtype of the model."""

    beta: float
    length: int
    offset: int = 0
    is_rounded: bool = True


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(SelfAttentionSpec):
    """Grouped-query attention. `scale` multiplies the scores.

    `q_norm` and `k_norm` normalize each head (dim head_dim) or the row of all heads, before the
    rotation; `head_norm` does it by layer norms. `sinks` is a float per query head in the softmax. `soft_cap` limits scores.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv: LinearSpec
    output: LinearSpec
    scale: float
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    head_norm: HeadNormSpec | None = None
    sliding_window: int | None = None
    soft_cap: float | None = None
    sinks: TensorPart | None = None
    query_scale: QueryScale | None = None

    @property
    def kv_layer(self) -> KVLayerSpec:
        return KVLayerSpec(
            num_heads=self.num_kv_heads,
            key_dim=self.head_dim,
            value_dim=self.head_dim,
            window=self.sliding_window or self.chunk_size,
        )

    @property
    def flops_per_key(self) -> int:
        return 4 * self.num_heads * self.head_dim

    @property
    def width(self) -> int:
        return (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim


class FeedForwardSpec(ABC):
    """What follows the attention of a layer, of whichever kind."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers per token that exist at once."""


@dataclass(frozen=True, kw_only=True)
class MLPSpec(FeedForwardSpec):
    """down(activation(up(x))), gated: down(activation(gate(x)) * up(x)).

    `up` has two projections, gate and up, where the layer is gated, else one. `activation` is one
    of the kinds of `kernels.activations`.
    """

    up: LinearSpec
    down: LinearSpec
    activation: str = "silu"

    @property
    def is_gated(self) -> bool:
        return len(self.up.out_dims) == 2

    @property
    def width(self) -> int:
        return self.up.out_dim + self.down.in_dim


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """Attention and feed-forward around a residual stream.

    Each `_norm` is before its part, each `_post_norm` on its result before that is added.
    `is_parallel`: both parts read the same stream; without `mlp_norm` also the same norm of it.
    `residual_multiplier` multiplies what is added (Granite).
    """

    attention: SelfAttentionSpec
    mlp: FeedForwardSpec
    attention_norm: NormSpec | None = None
    attention_post_norm: NormSpec | None = None
    mlp_norm: NormSpec | None = None
    mlp_post_norm: NormSpec | None = None
    is_parallel: bool = False
    residual_multiplier: float = 1.0


def weight_owners(part: object) -> Iterator[WeightOwner]:
    """The parts with weights among `part` and all it is made of, in the order of their fields."""
    if isinstance(part, WeightOwner):
        yield part
    elif isinstance(part, tuple):
        for item in part:
            yield from weight_owners(item)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from weight_owners(getattr(part, field.name))

"""`ModelSpec`: everything Quire knows about a model before it reads a weight. No torch.

The spec owns the table of weight names and shapes: the loader checks a checkpoint against it
and the model asks for its weights by these names.
"""

from dataclasses import dataclass
from typing import Literal

from quire.config.errors import ConfigError
from quire.pipelines.architectures.encodings import ITEM_BYTES, Encoding, TensorSpec
from quire.pipelines.architectures.parts import (
    EmbeddingSpec,
    KVLayerSpec,
    LayerSpec,
    LinearSpec,
    NormSpec,
    TensorPart,
    WeightOwner,
    weight_owners,
)
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder: an embedding, layers, a norm and a head.

    `lm_head` None: the embedding serves as head too; checkpoints may have it a second time, or
    only, as `tied_head`. With `tied_encoding` the head is made of a copy of it. Logits are
    multiplied by `logit_scale`, then limited by `logit_soft_cap` (Gemma 2). `positions` is a learned
    row per position (GPT-2).
    Checkpoint tensors whose name begins with one of `ignored_weights` are left unread: they belong
    to a part of the checkpoint that is not served. `renamed_weights`: prefixes that some checkpoints
    have, and what they stand for; the other fields know only the latter.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    embedding: EmbeddingSpec
    positions: TensorPart | None = None
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    lm_head: LinearSpec | None
    tied_head: str | None = None
    tied_encoding: Encoding | None = None
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    max_position_embeddings: int
    checkpoint_dtype: Dtype
    """What config.json declares; float32 where it declares nothing."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Of config.json and generation_config.json together."""
    quant: QuantConfig = UNQUANTIZED
    base_prefix: str = ""
    """What checkpoints saved without a head leave off the names of all else."""
    ignored_weights: tuple[str, ...] = ()
    renamed_weights: tuple[tuple[str, str], ...] = ()

    def end_token_ids(self, tokenizer_eos: int | None) -> tuple[int, ...]:
        """`eos_token_ids` and the tokenizer's own: fine-tuned models often declare only that."""
        extra = () if tokenizer_eos is None else (tokenizer_eos,)
        return tuple(dict.fromkeys((*self.eos_token_ids, *extra)))

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def keeps_embedding(self) -> bool:
        """Whether the embedding stays as stored where the head is the same matrix, laid out."""
        return False

    @property
    def tie_word_embeddings(self) -> bool:
        return self.lm_head is None

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may have this tensor although nothing reads it."""
        is_ignored = name == self.tied_head or name.startswith(self.ignored_weights)
        return is_ignored or name.endswith(self.quant.ignored_suffixes)

    @property
    def owners(self) -> tuple[WeightOwner, ...]:
        """The parts with weights."""
        return tuple(weight_owners(self))

    def tensors(self) -> dict[str, TensorSpec]:
        """Checkpoint name to what is expected there."""
        found: dict[str, TensorSpec] = {}
        for owner in self.owners:
            found.update(owner.tensors(self.quant))
        return found

    @property
    def num_parameters(self) -> int:
        return sum(owner.num_parameters for owner in self.owners)

    def weight_bytes(self, dtype: str, device_type: str = "cuda") -> int:
        """Bytes of the weights on the device, each held once."""
        held = sum(owner.device_bytes(self.quant, dtype, device_type) for owner in self.owners)
        return held + self._tied_bytes(dtype, device_type)

    def _tied_bytes(self, dtype: str, device_type: str) -> int:
        if self.tied_encoding is None:
            return 0
        sizes = self.embedding.vocab_size, self.embedding.dim
        return self.tied_encoding.device_bytes(*sizes, dtype, device_type)

    def streamed_weight_bytes(self, dtype: str, device_type: str) -> int:
        """Bytes that a decode step of one token reads: of experts its own, of the embedding a row,
        unless the head shares it."""
        num_bytes = self._tied_bytes(dtype, device_type)
        for owner in self.owners:
            held = owner.device_bytes(self.quant, dtype, device_type)
            is_head = (
                owner is self.embedding and self.tie_word_embeddings and self.tied_encoding is None
            )
            share = 1.0 if is_head else owner.num_active_parameters / max(owner.num_parameters, 1)
            num_bytes += int(held * share)
        return num_bytes

    @property
    def kv_layers(self) -> tuple[KVLayerSpec, ...]:
        """What each layer caches."""
        return tuple(layer.attention.kv_layer for layer in self.layers)

    @property
    def longest_context(self) -> int:
        """The greatest `max_length` the rotary embeddings are made for."""
        longest = max(layer.attention.rope.longest_context for layer in self.layers)
        return max(self.max_position_embeddings, longest)

    @property
    def rotary_width(self) -> int:
        """Numbers of all rotary tables per position."""
        ropes = {layer.attention.rope for layer in self.layers}
        return sum(rope.rotary_dim for rope in ropes)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes that one token's keys and values take in all layers."""
        return ITEM_BYTES[dtype] * sum(layer.numbers_per_token for layer in self.kv_layers)

    def flops_per_token(self, context_length: int) -> int:
        """Multiplications and additions of one decoded token after `context_length` others."""
        active = sum(owner.num_active_parameters for owner in self.owners)
        if self.tie_word_embeddings:
            active += self.embedding.num_parameters
        flops = 2 * active
        for layer in self.layers:
            window = layer.attention.kv_layer.window
            span = min(context_length, window or context_length)
            flops += layer.attention.flops_per_key * span
        return flops

    @property
    def layer_width(self) -> int:
        """Numbers per token that exist at once in the widest layer, estimated."""
        widest = max(max(layer.attention.width, layer.mlp.width) for layer in self.layers)
        return 4 * self.hidden_size + widest

    def serving_dtype(self, requested: str, device_type: str) -> Dtype:
        """The dtype of weights and activations for the setting `dtype` on `cpu` or `cuda`.

        `auto` keeps the checkpoint's, except float16 on a CPU, which has no fast float16 matmul:
        there it is float32, which holds every float16 exactly.

        Raises:
            ConfigError: float16 is asked for on a CPU.
        """
        return serving_dtype(self.checkpoint_dtype, requested, device_type)


def serving_dtype(checkpoint_dtype: Dtype, requested: str, device_type: str) -> Dtype:
    """As `ModelSpec.serving_dtype`, for any model."""
    match requested:
        case "float16" if device_type == "cpu":
            raise ConfigError("dtype float16 is not served on a CPU: use bfloat16 or float32")
        case "float32" | "bfloat16" | "float16":
            return requested
    return "float32" if device_type == "cpu" and checkpoint_dtype == "float16" else checkpoint_dtype

"""What config.json says of a model that only transformers knows. No torch."""

from dataclasses import dataclass

from quire.config.errors import ModelError
from quire.pipelines.architectures.common import (
    DecoderSizes,
    check_head_dim,
    decoder_spec,
    gated_mlp,
    llama_attention,
    rms_norm,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.parts import KVLayerSpec, LayerSpec
from quire.pipelines.architectures.rope_spec import no_rope
from quire.pipelines.architectures.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class HuggingFaceSpec(ModelSpec):
    """A spec whose layers are a guess, good enough for `quire plan`.

    `measured_layers` is what the loaded model was seen to cache, and `measured_bytes` what its
    weights take.
    """

    measured_layers: tuple[KVLayerSpec, ...] = ()
    measured_bytes: int | None = None

    @property
    def kv_layers(self) -> tuple[KVLayerSpec, ...]:
        return self.measured_layers or super().kv_layers

    @property
    def keeps_embedding(self) -> bool:
        """transformers' code reads it."""
        return True

    def weight_bytes(self, dtype: str, device_type: str = "cuda") -> int:
        """As measured, else as guessed."""
        if self.measured_bytes is not None:
            return self.measured_bytes
        return super().weight_bytes(dtype, device_type)


def read_huggingface_spec(config: ConfigFile) -> HuggingFaceSpec:
    """Read config.json, or the part of it for the text model.

    Raises:
        ModelError: a size that every causal language model has is missing or wrong.
    """
    names = config.strings("architectures")
    if len(names) != 1:
        raise config.wrong("architectures", "one class")
    if config.has("quantization_config"):
        raise config.wrong("quantization_config", "plain numbers for --engine huggingface")
    text = config.section("text_config") if config.has("text_config") else config
    hidden, heads = (
        _integer(text, "hidden_size", "n_embd"),
        _integer(text, "num_attention_heads", "n_head"),
    )
    head_dim = text.integer("head_dim", max(hidden // heads, 1))
    check_head_dim(text, head_dim)
    sizes = DecoderSizes(
        vocab_size=text.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=_integer(text, "num_hidden_layers", "n_layer"),
        num_heads=heads,
        num_kv_heads=text.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate_size=text.integer("intermediate_size", 4 * hidden),
        max_position_embeddings=_max_positions(text),
    )
    layer = LayerSpec(
        attention=llama_attention(sizes, "", no_rope(head_dim)),
        mlp=gated_mlp("", hidden, sizes.intermediate_size),
    )
    guess = decoder_spec(
        text, names[0], sizes, [layer] * sizes.num_layers, final_norm=rms_norm("", hidden, 1.0)
    )
    fields = {name: getattr(guess, name) for name in guess.__dataclass_fields__}
    return HuggingFaceSpec(**fields)


def _max_positions(config: ConfigFile) -> int:
    """Of LongRoPE the context of its short factors alone: transformers chooses by the longest
    context of a step which factors all of them get."""
    longest = _integer(config, "max_position_embeddings", "n_positions")
    outer = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    inner = [outer.section(key) for key in outer if outer.is_object(key)]
    key = "original_max_position_embeddings"
    for rope in (outer, *inner):
        if "longrope" in (rope.string("rope_type", ""), rope.string("type", "")):
            longest = min(longest, (rope if rope.has(key) else config).integer(key, longest))
    return longest


def _integer(config: ConfigFile, *keys: str) -> int:
    """Under the first of `keys` that is there; older models have names of their own."""
    for key in keys:
        if config.has(key):
            return config.integer(key)
    raise ModelError(f"{config.name}: expected {' or '.join(keys)}, found neither")

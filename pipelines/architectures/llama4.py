"""Llama 4 (https://ai.meta.com/blog/llama-4-multimodal-intelligence/), its text part: mixtures of
experts, chunked attention, and layers without rotation."""

import dataclasses
from collections.abc import Mapping

from quire.pipelines.architectures.common import (
    DecoderSizes,
    decoder_spec,
    gated_mlp,
    llama_attention,
    read_layer_types,
    rms_norm,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.moe_parts import MoESpec, StackedExperts
from quire.pipelines.architectures.moe_reader import read_expert_counts, router_spec
from quire.pipelines.architectures.multimodal import (
    HEAD_NAME,
    PREFIX,
    text_only,
    text_section,
)
from quire.pipelines.architectures.parts import (
    AttentionSpec,
    FeedForwardSpec,
    LayerSpec,
    NormSpec,
    QueryScale,
)
from quire.pipelines.architectures.rope_spec import RopeSpec, no_rope, read_rope
from quire.pipelines.architectures.spec import ModelSpec

_TEXT_DEFAULTS: Mapping[str, object] = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
}
"""What transformers takes for keys that `text_config` does not have."""

_NORMED_ROPES = ("default", "linear", "dynamic", "llama3")
"""Rotations that keep a head's length, so that norm and rotation can change places."""


def read_llama4(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    return _llama4(config, "Llama4ForCausalLM", "model.", "lm_head")


def read_llama4_multimodal(config: ConfigFile) -> ModelSpec:
    """The text part of a checkpoint that also sees.

    Raises:
        ModelError: a key is missing or wrong.
    """
    text = text_section(config, _TEXT_DEFAULTS, model_types=("llama4_text",), tie_by_default=False)
    spec = text_only(config, _llama4(text, "Llama4ForConditionalGeneration", PREFIX, HEAD_NAME))
    return dataclasses.replace(spec, ignored_weights=(*spec.ignored_weights, "vision_model."))


def _llama4(config: ConfigFile, architecture: str, prefix: str, head_name: str) -> ModelSpec:
    sizes = DecoderSizes.read(config, default_head_dim=128)
    epsilon = config.number("rms_norm_eps")
    attention = _AttentionReader(config, sizes)
    with_experts = _layers_with_experts(config, sizes.num_layers)

    def feed_forward(index: int, block: str) -> FeedForwardSpec:
        if index in with_experts:
            return _mixture(config, sizes, block)
        return gated_mlp(block, sizes.hidden_size, config.integer("intermediate_size_mlp", 16384))

    def layer(index: int) -> LayerSpec:
        block = f"{prefix}layers.{index}."
        return LayerSpec(
            attention=attention.layer(index, f"{block}self_attn."),
            mlp=feed_forward(index, f"{block}feed_forward."),
            attention_norm=rms_norm(f"{block}input_layernorm", sizes.hidden_size, epsilon),
            mlp_norm=rms_norm(f"{block}post_attention_layernorm", sizes.hidden_size, epsilon),
        )

    return decoder_spec(
        config,
        architecture,
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=rms_norm(f"{prefix}norm", sizes.hidden_size, epsilon),
        prefix=prefix,
        head_name=head_name,
    )


class _AttentionReader:
    """What config.json says of attention, read once, and of it each layer's part."""

    def __init__(self, config: ConfigFile, sizes: DecoderSizes) -> None:
        self.sizes = sizes
        self.epsilon = config.number("rms_norm_eps")
        self.has_bias = config.boolean("attention_bias", False)
        self.has_norm = config.boolean("use_qk_norm", True)
        self.rope = _rope(config, sizes, self.has_norm)
        self.is_turned = _turned_layers(config, sizes.num_layers)
        self.is_chunked = _chunked_layers(config, self.is_turned)
        self.chunk_size = config.integer("attention_chunk_size") if any(self.is_chunked) else None
        self.query_scale = _query_scale(config)

    def layer(self, index: int, prefix: str) -> AttentionSpec:
        """Of the layer whose tensors begin with `prefix`."""
        is_turned = self.is_turned[index]
        attention = llama_attention(
            self.sizes,
            prefix,
            self.rope if is_turned else self._still(),
            has_qkv_bias=self.has_bias,
            has_output_bias=self.has_bias,
            q_norm=self._norm(f"{prefix}q_norm") if is_turned else None,
            k_norm=self._norm(f"{prefix}k_norm") if is_turned else None,
            query_scale=None if is_turned else self.query_scale,
        )
        chunk_size = self.chunk_size if self.is_chunked[index] else None
        return dataclasses.replace(attention, chunk_size=chunk_size)

    def _still(self) -> RopeSpec:
        longest = self.rope.longest_context
        return dataclasses.replace(no_rope(self.sizes.head_dim), max_position=longest)

    def _norm(self, name: str) -> NormSpec | None:
        """Of a head's length. transformers takes it after the rotation, which does not change it."""
        if not self.has_norm:
            return None
        return NormSpec(
            name=name,
            dim=self.sizes.head_dim,
            epsilon=self.epsilon,
            has_weight=False,
            multiply_before_cast=True,
        )


def _rope(config: ConfigFile, sizes: DecoderSizes, has_norm: bool) -> RopeSpec:
    rope = read_rope(
        config,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.max_position_embeddings,
        is_interleaved=True,
        default_theta=500000.0,
    )
    if has_norm and rope.kind not in _NORMED_ROPES:
        raise config.wrong("use_qk_norm", f"false with rope_type {rope.kind}")
    return rope


def _turned_layers(config: ConfigFile, num_layers: int) -> tuple[bool, ...]:
    """`no_rope_layers`, which has a 1 where there is rotation, or its period."""
    given = config.integers("no_rope_layers") if config.has("no_rope_layers") else ()
    if not given:
        period = config.integer("no_rope_layer_interval", 4)
        return tuple((index + 1) % period != 0 for index in range(num_layers))
    if len(given) < num_layers:
        raise config.wrong("no_rope_layers", f"an entry for each of {num_layers} layers")
    return tuple(entry != 0 for entry in given[:num_layers])


def _chunked_layers(config: ConfigFile, is_turned: tuple[bool, ...]) -> tuple[bool, ...]:
    if not config.has("layer_types"):
        return is_turned
    allowed = {"chunked_attention", "full_attention"}
    kinds = read_layer_types(config, len(is_turned), allowed)
    return tuple(kind == "chunked_attention" for kind in kinds)


def _query_scale(config: ConfigFile) -> QueryScale | None:
    """Of layers without rotation (https://arxiv.org/abs/2501.19399)."""
    # Published files have 4 for true.
    if not config.truth("attn_temperature_tuning", True):
        return None
    return QueryScale(
        beta=config.number("attn_scale", 0.1),
        length=config.integer("floor_scale", 8192),
        offset=1,
        is_rounded=False,
    )


def _layers_with_experts(config: ConfigFile, num_layers: int) -> tuple[int, ...]:
    if config.has("moe_layers"):
        return config.integers("moe_layers")
    step = config.integer("interleave_moe_layer_step", 1)
    return tuple(range(step - 1, num_layers, step))


def _mixture(config: ConfigFile, sizes: DecoderSizes, prefix: str) -> MoESpec:
    num_experts, top_k = read_expert_counts(config)
    return MoESpec(
        router=router_spec(f"{prefix}router", sizes.hidden_size, num_experts),
        experts=StackedExperts(
            prefix=f"{prefix}experts.",
            num_experts=num_experts,
            top_k=top_k,
            hidden_size=sizes.hidden_size,
            inner_size=sizes.intermediate_size,
        ),
        shared=gated_mlp(f"{prefix}shared_expert.", sizes.hidden_size, sizes.intermediate_size),
        scoring="sigmoid",
        weights_input=True,
    )

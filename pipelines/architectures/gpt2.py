"""GPT-2 (https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf):
a learned row per position, layer norms, and weights stored as [in, out]."""

import dataclasses

from quire.pipelines.architectures.common import (
    DecoderSizes,
    check_head_dim,
    decoder_spec,
    layer_norm,
    plain_mlp,
    read_activation,
    refuse_true,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.parts import AttentionSpec, LayerSpec, LinearSpec, TensorPart
from quire.pipelines.architectures.rope_spec import no_rope
from quire.pipelines.architectures.spec import ModelSpec

_CONV1D = Encoding(is_transposed=True)
_MASKS = ("bias", "masked_bias")
"""Buffers of causal masks that old transformers saved in each layer's `attn.`."""


def read_gpt2(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    if config.has("quantization_config"):
        raise config.wrong("quantization_config", "nothing for GPT2LMHeadModel")
    refuse_true(config, "add_cross_attention")
    sizes = _sizes(config)
    epsilon = config.number("layer_norm_epsilon", 1e-5)
    activation = read_activation(config, "activation_function", "gelu_new")
    is_scaled = config.boolean("scale_attn_weights", True)
    is_scaled_by_layer = config.boolean("scale_attn_by_inverse_layer_idx", False)

    def layer(index: int) -> LayerSpec:
        prefix = f"transformer.h.{index}."
        scale = sizes.head_dim**-0.5 if is_scaled else 1.0
        return LayerSpec(
            attention=_attention(
                sizes, f"{prefix}attn.", scale / (index + 1) if is_scaled_by_layer else scale
            ),
            mlp=plain_mlp(
                (f"{prefix}mlp.c_fc", f"{prefix}mlp.c_proj"),
                sizes.hidden_size,
                sizes.intermediate_size,
                activation=activation,
                encoding=_CONV1D,
            ),
            attention_norm=layer_norm(f"{prefix}ln_1", sizes.hidden_size, epsilon),
            mlp_norm=layer_norm(f"{prefix}ln_2", sizes.hidden_size, epsilon),
        )

    spec = decoder_spec(
        config,
        "GPT2LMHeadModel",
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=layer_norm("transformer.ln_f", sizes.hidden_size, epsilon),
        tie_by_default=True,
        prefix="transformer.",
        embedding_name="wte",
    )
    shape = (sizes.max_position_embeddings, sizes.hidden_size)
    return dataclasses.replace(
        spec,
        positions=TensorPart("transformer.wpe.weight", shape),
        ignored_weights=tuple(
            f"transformer.h.{index}.attn.{mask}"
            for index in range(sizes.num_layers)
            for mask in _MASKS
        ),
    )


def _sizes(config: ConfigFile) -> DecoderSizes:
    hidden_size, num_heads = config.integer("n_embd"), config.integer("n_head")
    head_dim = max(hidden_size // num_heads, 1)
    check_head_dim(config, head_dim)
    if num_heads * head_dim != hidden_size:
        raise config.wrong("n_head", f"a divisor of n_embd {hidden_size}")
    return DecoderSizes(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=config.integer("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=config.integer("n_inner", 4 * hidden_size),
        max_position_embeddings=config.integer("n_positions"),
    )


def _attention(sizes: DecoderSizes, prefix: str, scale: float) -> AttentionSpec:
    def conv1d(linear: LinearSpec) -> LinearSpec:
        return dataclasses.replace(linear, encoding=_CONV1D)

    return AttentionSpec(
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        qkv=conv1d(sizes.qkv(prefix, has_bias=True, fused_name="c_attn")),
        output=conv1d(sizes.attention_output(f"{prefix}c_proj", has_bias=True)),
        rope=no_rope(sizes.head_dim),
        scale=scale,
    )

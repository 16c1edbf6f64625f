"""GPT-NeoX and Pythia (https://arxiv.org/abs/2304.01373): attention and feed-forward side by side,
q, k and v of each head together in one matrix."""

import dataclasses

from quire.pipelines.architectures.common import (
    DecoderSizes,
    check_whole_heads,
    decoder_spec,
    layer_norm,
    llama_attention,
    plain_mlp,
    read_activation,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.parts import AttentionSpec, LayerSpec
from quire.pipelines.architectures.rope_spec import RopeSpec
from quire.pipelines.architectures.spec import ModelSpec

_MASKS = ("bias", "masked_bias")
"""Buffers of causal masks that old transformers saved in each layer's `attention.`."""


def read_gpt_neox(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    check_whole_heads(config, sizes)
    if sizes.num_kv_heads != sizes.num_heads:
        raise config.wrong("num_key_value_heads", f"{sizes.num_heads}, as many as heads")
    epsilon = config.number("layer_norm_eps", 1e-5)
    rope = _rope(config, sizes)
    activation = read_activation(config, default="gelu")
    has_bias = config.boolean("attention_bias", True)
    is_parallel = config.boolean("use_parallel_residual", True)

    def layer(index: int) -> LayerSpec:
        prefix = f"gpt_neox.layers.{index}."
        return LayerSpec(
            attention=_attention(sizes, f"{prefix}attention.", rope, has_bias),
            mlp=plain_mlp(
                (f"{prefix}mlp.dense_h_to_4h", f"{prefix}mlp.dense_4h_to_h"),
                sizes.hidden_size,
                sizes.intermediate_size,
                activation=activation,
            ),
            attention_norm=layer_norm(f"{prefix}input_layernorm", sizes.hidden_size, epsilon),
            mlp_norm=layer_norm(f"{prefix}post_attention_layernorm", sizes.hidden_size, epsilon),
            is_parallel=is_parallel,
        )

    spec = decoder_spec(
        config,
        "GPTNeoXForCausalLM",
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=layer_norm("gpt_neox.final_layer_norm", sizes.hidden_size, epsilon),
        prefix="gpt_neox.",
        embedding_name="embed_in",
        head_name="embed_out",
    )
    masks = tuple(
        f"gpt_neox.layers.{index}.attention.{mask}"
        for index in range(sizes.num_layers)
        for mask in _MASKS
    )
    return dataclasses.replace(spec, ignored_weights=masks)


def _rope(config: ConfigFile, sizes: DecoderSizes) -> RopeSpec:
    share, theta = config.number("rotary_pct", 0.25), config.number("rotary_emb_base", 10000.0)
    # Names that transformers writes beside its own and does not read.
    for key, value in (("partial_rotary_factor", share), ("rope_theta", theta)):
        if config.number(key, value) != value:
            raise config.wrong(key, f"{value:g}, as of rotary_pct and rotary_emb_base")
    return sizes.rope(config, default_share=share, default_theta=theta)


def _attention(sizes: DecoderSizes, prefix: str, rope: RopeSpec, has_bias: bool) -> AttentionSpec:
    attention = llama_attention(
        sizes,
        prefix,
        rope,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        fused_name="query_key_value",
        output_name="dense",
    )
    qkv = dataclasses.replace(attention.qkv, num_groups=sizes.num_heads)
    return dataclasses.replace(attention, qkv=qkv)

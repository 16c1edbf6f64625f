"""Llama 2 and 3 (https://arxiv.org/abs/2407.21783), and whatever has its configuration."""

import functools
from collections.abc import Sequence

from quire.pipelines.architectures.common import (
    DecoderSizes,
    decoder_spec,
    gated_mlp,
    llama_attention,
    read_activation,
    rms_norm,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.parts import (
    FeedForwardSpec,
    LayerSpec,
    MLPSpec,
    NormSpec,
    QueryScale,
)
from quire.pipelines.architectures.rope_spec import RopeSpec
from quire.pipelines.architectures.spec import ModelSpec


def read_llama(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    attention_bias = config.boolean("attention_bias", False)
    return llama_spec(
        config,
        "LlamaForCausalLM",
        DecoderSizes.read(config),
        has_qkv_bias=attention_bias,
        has_output_bias=attention_bias,
        has_mlp_bias=config.boolean("mlp_bias", False),
    )


def _mlp(config: ConfigFile, sizes: DecoderSizes, has_bias: bool, prefix: str) -> MLPSpec:
    return gated_mlp(
        prefix,
        sizes.hidden_size,
        sizes.intermediate_size,
        activation=read_activation(config),
        has_bias=has_bias,
    )


def llama_spec(
    config: ConfigFile,
    architecture: str,
    sizes: DecoderSizes,
    *,
    has_qkv_bias: bool = False,
    has_output_bias: bool = False,
    has_mlp_bias: bool = False,
    has_qk_norm: bool = False,
    windows: Sequence[int | None] | None = None,
    ropes: Sequence[RopeSpec] | None = None,
    feed_forwards: Sequence[FeedForwardSpec] | None = None,
    attention_scale: float | None = None,
    query_scale: QueryScale | None = None,
    fused_qkv_name: str | None = None,
    prefix: str = "model.",
    head_name: str = "lm_head",
    tie_by_default: bool = False,
) -> ModelSpec:
    """A decoder of Llama's blocks; `windows`, `ropes` and `feed_forwards` have an entry per layer."""
    epsilon = config.number("rms_norm_eps")
    ropes = ropes or (sizes.rope(config),) * sizes.num_layers
    mlp = functools.partial(_mlp, config, sizes, has_mlp_bias)

    def layer(index: int) -> LayerSpec:
        block = f"{prefix}layers.{index}."

        def norm(name: str, dim: int = sizes.hidden_size) -> NormSpec:
            return rms_norm(f"{block}{name}", dim, epsilon)

        return LayerSpec(
            attention=llama_attention(
                sizes,
                f"{block}self_attn.",
                ropes[index],
                has_qkv_bias=has_qkv_bias,
                has_output_bias=has_output_bias,
                scale=attention_scale,
                q_norm=norm("self_attn.q_norm", sizes.head_dim) if has_qk_norm else None,
                k_norm=norm("self_attn.k_norm", sizes.head_dim) if has_qk_norm else None,
                sliding_window=windows[index] if windows else None,
                query_scale=query_scale,
                fused_name=fused_qkv_name,
            ),
            mlp=feed_forwards[index] if feed_forwards else mlp(f"{block}mlp."),
            attention_norm=norm("input_layernorm"),
            mlp_norm=norm("post_attention_layernorm"),
        )

    return decoder_spec(
        config,
        architecture,
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=rms_norm(f"{prefix}norm", sizes.hidden_size, epsilon),
        tie_by_default=tie_by_default,
        prefix=prefix,
        head_name=head_name,
    )

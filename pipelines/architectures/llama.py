"""Llama 2 and 3 (https://arxiv.org/abs/2407.21783), and whatever has its configuration."""

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
from quire.pipelines.architectures.parts import LayerSpec, NormSpec
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
) -> ModelSpec:
    """A decoder of Llama's blocks; `windows` has an entry per layer."""
    epsilon = config.number("rms_norm_eps")
    rope = sizes.rope(config)
    activation = read_activation(config)

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}."

        def head_norm(name: str) -> NormSpec | None:
            full = f"{prefix}self_attn.{name}"
            return rms_norm(full, sizes.head_dim, epsilon) if has_qk_norm else None

        return LayerSpec(
            attention=llama_attention(
                sizes,
                f"{prefix}self_attn.",
                rope,
                has_qkv_bias=has_qkv_bias,
                has_output_bias=has_output_bias,
                q_norm=head_norm("q_norm"),
                k_norm=head_norm("k_norm"),
                sliding_window=windows[index] if windows else None,
            ),
            mlp=gated_mlp(
                f"{prefix}mlp.",
                sizes.hidden_size,
                sizes.intermediate_size,
                activation=activation,
                has_bias=has_mlp_bias,
            ),
            attention_norm=rms_norm(f"{prefix}input_layernorm", sizes.hidden_size, epsilon),
            mlp_norm=rms_norm(f"{prefix}post_attention_layernorm", sizes.hidden_size, epsilon),
        )

    return decoder_spec(
        config,
        architecture,
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=rms_norm("model.norm", sizes.hidden_size, epsilon),
    )

"""GLM-4 9B (https://arxiv.org/abs/2406.12793) and GLM-4-0414: Llama that turns the neighbours in
half of each head, gate and up in one matrix; the later one with norms of each part's result."""

from dataclasses import replace

from quire.pipelines.architectures.common import (
    DecoderSizes,
    gated_mlp,
    read_activation,
    rms_norm,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.parts import LayerSpec
from quire.pipelines.architectures.spec import ModelSpec


def read_glm(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    return _glm_spec(config, "GlmForCausalLM")


def read_glm4(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    spec = _glm_spec(config, "Glm4ForCausalLM")
    epsilon = config.number("rms_norm_eps")

    def with_post_norms(index: int, layer: LayerSpec) -> LayerSpec:
        prefix = f"model.layers.{index}."
        return replace(
            layer,
            attention_post_norm=rms_norm(
                f"{prefix}post_self_attn_layernorm", spec.hidden_size, epsilon
            ),
            mlp_post_norm=rms_norm(f"{prefix}post_mlp_layernorm", spec.hidden_size, epsilon),
        )

    layers = tuple(with_post_norms(index, layer) for index, layer in enumerate(spec.layers))
    return replace(spec, layers=layers)


def _glm_spec(config: ConfigFile, architecture: str) -> ModelSpec:
    sizes = DecoderSizes.read(config, default_head_dim=128)
    rope = replace(sizes.rope(config, default_share=0.5), is_interleaved=True)
    activation = read_activation(config)
    return llama_spec(
        config,
        architecture,
        sizes,
        has_qkv_bias=config.boolean("attention_bias", True),
        ropes=(rope,) * sizes.num_layers,
        feed_forwards=[
            gated_mlp(
                f"model.layers.{index}.mlp.",
                sizes.hidden_size,
                sizes.intermediate_size,
                activation=activation,
                fused_name="gate_up_proj",
            )
            for index in range(sizes.num_layers)
        ],
    )

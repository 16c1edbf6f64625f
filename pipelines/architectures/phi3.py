"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (https://arxiv.org/abs/2404.14219): Llama with its
projections fused in the checkpoint."""

from quire.pipelines.architectures.common import (
    DecoderSizes,
    gated_mlp,
    read_activation,
    read_window,
    refuse_true,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.spec import ModelSpec


def read_phi3(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    refuse_true(config, "attention_bias", "mlp_bias", "lm_head_bias")
    rope = sizes.rope(config, default_share=1.0)
    _check_rope(config, rope.kind)
    activation = read_activation(config)
    return llama_spec(
        config,
        "Phi3ForCausalLM",
        sizes,
        windows=(read_window(config),) * sizes.num_layers,
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
        fused_qkv_name="qkv_proj",
    )


def _check_rope(config: ConfigFile, kind: str) -> None:
    if kind not in ("default", "longrope"):
        key = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
        raise config.wrong(key, "the type default, longrope or su")
    if kind == "longrope":
        # transformers takes a missing one for 4096, whatever stands beside the factors.
        config.integer("original_max_position_embeddings")

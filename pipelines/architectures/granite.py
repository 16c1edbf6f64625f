"""Granite 3 (https://arxiv.org/abs/2405.04324): Llama with four multipliers (muP)."""

from dataclasses import replace

from quire.pipelines.architectures.common import DecoderSizes
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.spec import ModelSpec


def read_granite(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    attention_bias = config.boolean("attention_bias", False)
    spec = llama_spec(
        config,
        "GraniteForCausalLM",
        DecoderSizes.read(config),
        has_qkv_bias=attention_bias,
        has_output_bias=attention_bias,
        has_mlp_bias=config.boolean("mlp_bias", False),
        attention_scale=config.number("attention_multiplier", 1.0),
    )
    residual = config.number("residual_multiplier", 1.0)
    return replace(
        spec,
        embedding=replace(spec.embedding, scale=config.number("embedding_multiplier", 1.0)),
        layers=tuple(replace(layer, residual_multiplier=residual) for layer in spec.layers),
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )

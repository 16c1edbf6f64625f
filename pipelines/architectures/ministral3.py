"""Ministral 3 (https://arxiv.org/abs/2601.08584): Mistral whose queries grow with the position."""

from collections.abc import Mapping

from quire.pipelines.architectures.common import DecoderSizes
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.parts import QueryScale
from quire.pipelines.architectures.spec import ModelSpec

DEFAULTS: Mapping[str, object] = {
    "vocab_size": 131_072,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262_144,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Of transformers' Ministral3Config: what a `text_config` may leave out."""


def read_ministral3(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    return ministral3_spec(config, "Ministral3ForCausalLM")


def ministral3_spec(
    config: ConfigFile, architecture: str, *, prefix: str = "model.", head_name: str = "lm_head"
) -> ModelSpec:
    """A decoder of Ministral 3's blocks."""
    sizes = DecoderSizes.read(config, default_head_dim=128)
    if config.has("layer_types"):
        raise config.wrong("layer_types", "nothing")
    if not config.has("rope_parameters"):
        raise config.wrong("rope_parameters", "a JSON object")
    rope = config.section("rope_parameters")
    window = config.integer("sliding_window") if config.has("sliding_window") else None
    return llama_spec(
        config,
        architecture,
        sizes,
        windows=(window,) * sizes.num_layers,
        query_scale=QueryScale(
            beta=rope.number("llama_4_scaling_beta"),
            length=rope.integer("original_max_position_embeddings"),
        ),
        prefix=prefix,
        head_name=head_name,
    )

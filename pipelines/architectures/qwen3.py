"""Qwen3 (https://arxiv.org/abs/2505.09388): Llama with a norm of each query and key head."""

from quire.pipelines.architectures.common import DecoderSizes, windows_by_layer
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.spec import ModelSpec


def read_qwen3(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config, default_head_dim=128)
    attention_bias = config.boolean("attention_bias", False)
    return llama_spec(
        config,
        "Qwen3ForCausalLM",
        sizes,
        has_qkv_bias=attention_bias,
        has_output_bias=attention_bias,
        has_qk_norm=True,
        windows=windows_by_layer(config, sizes.num_layers),
    )

"""Qwen2 and Qwen2.5 (https://arxiv.org/abs/2412.15115): Llama with biases on q, k and v."""

from quire.pipelines.architectures.common import DecoderSizes, windows_by_layer
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.spec import ModelSpec


def read_qwen2(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    return llama_spec(
        config,
        "Qwen2ForCausalLM",
        sizes,
        has_qkv_bias=True,
        windows=windows_by_layer(config, sizes.num_layers),
    )

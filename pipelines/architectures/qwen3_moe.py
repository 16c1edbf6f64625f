"""Qwen3-MoE (https://arxiv.org/abs/2505.09388): Qwen3 with mixtures of experts."""

from quire.pipelines.architectures.common import DecoderSizes
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.qwen2_moe import qwen_feed_forwards
from quire.pipelines.architectures.spec import ModelSpec


def read_qwen3_moe(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    attention_bias = config.boolean("attention_bias", False)
    # One window for all layers: `max_window_layers` of published files is not read here.
    has_window = config.boolean("use_sliding_window", False) and config.has("sliding_window")
    window = config.integer("sliding_window") if has_window else None
    return llama_spec(
        config,
        "Qwen3MoeForCausalLM",
        sizes,
        has_qkv_bias=attention_bias,
        has_output_bias=attention_bias,
        has_qk_norm=True,
        windows=(window,) * sizes.num_layers,
        feed_forwards=qwen_feed_forwards(config, sizes, has_shared_expert=False),
    )

"""SmolLM3 (https://huggingface.co/blog/smollm3): Llama where every fourth layer has no rope."""

from collections.abc import Sequence

from quire.pipelines.architectures.common import DecoderSizes, windows_by_layer
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.rope_spec import no_rope, read_rope
from quire.pipelines.architectures.spec import ModelSpec


def read_smollm3(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    attention_bias = config.boolean("attention_bias", False)
    rope = read_rope(
        config,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.max_position_embeddings,
        default_theta=2_000_000.0,
    )
    has_rope = _rope_flags(config, sizes.num_layers)
    return llama_spec(
        config,
        "SmolLM3ForCausalLM",
        sizes,
        has_qkv_bias=attention_bias,
        has_output_bias=attention_bias,
        has_mlp_bias=config.boolean("mlp_bias", False),
        windows=_windows(config, has_rope),
        ropes=[rope if flag else no_rope(sizes.head_dim) for flag in has_rope],
        tie_by_default=True,
    )


def _rope_flags(config: ConfigFile, num_layers: int) -> tuple[bool, ...]:
    """`no_rope_layers`, which has 0 for a layer without, or `no_rope_layer_interval`."""
    if not config.has("no_rope_layers"):
        interval = config.integer("no_rope_layer_interval", 4)
        return tuple((layer + 1) % interval != 0 for layer in range(num_layers))
    flags = config.integers("no_rope_layers")
    if len(flags) < num_layers or not set(flags) <= {0, 1}:
        raise config.wrong("no_rope_layers", f"{num_layers} of 0 or 1")
    return tuple(flag == 1 for flag in flags[:num_layers])


def _windows(config: ConfigFile, has_rope: Sequence[bool]) -> tuple[int | None, ...]:
    """Without `layer_types` the layers without rope have the window."""
    if config.has("layer_types"):
        return windows_by_layer(config, len(has_rope))
    use_window = config.boolean("use_sliding_window", False) and config.has("sliding_window")
    window = config.integer("sliding_window") if use_window else None
    return tuple(None if flag else window for flag in has_rope)

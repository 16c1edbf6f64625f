"""EXAONE 4 (https://arxiv.org/abs/2507.11407): OLMo 2's norms, but of heads of q and k.

Large ones mix local layers with rope and global layers without; small ones have no window and rope
everywhere.
"""

from quire.pipelines.architectures.common import DecoderSizes, read_layer_types
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.layer_types import GLOBAL, local_windows, read_kinds
from quire.pipelines.architectures.olmo2 import post_norm_spec
from quire.pipelines.architectures.rope_spec import no_rope
from quire.pipelines.architectures.spec import ModelSpec


def read_exaone4(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    rope = sizes.rope(config)
    # To transformers a missing key is 4096, so only a written null means no window.
    is_hybrid = not config.is_null("sliding_window")
    kinds = (GLOBAL,) * sizes.num_layers
    if is_hybrid:
        config.integer("sliding_window")
        kinds = read_kinds(config, sizes.num_layers, _period(config))
    elif config.has("layer_types"):
        kinds = read_layer_types(config, sizes.num_layers, {GLOBAL})
    nope = no_rope(sizes.head_dim) if is_hybrid else rope
    return post_norm_spec(
        config,
        "Exaone4ForCausalLM",
        sizes,
        ropes=[nope if kind == GLOBAL else rope for kind in kinds],
        windows=local_windows(config, kinds),
        q_norm_dim=sizes.head_dim,
        k_norm_dim=sizes.head_dim,
    )


def _period(config: ConfigFile) -> int:
    """`sliding_window_pattern`, which is also written as a text: LLLG."""
    if config.has("layer_types"):
        return 1
    return config.integer("sliding_window_pattern", 4)

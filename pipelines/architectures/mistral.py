"""Mistral (https://arxiv.org/abs/2310.06825), Nemo and Small: Llama, early ones with a window.

Ministral 8B is Mistral with a window in some layers only.
"""

from quire.pipelines.architectures.common import DecoderSizes
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.layer_types import GLOBAL, LOCAL, local_windows, read_kinds
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.spec import ModelSpec


def read_mistral(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    return mistral_spec(config, "MistralForCausalLM")


def read_ministral(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    return mistral_spec(config, "MinistralForCausalLM")


def mistral_spec(
    config: ConfigFile, architecture: str, *, prefix: str = "model.", head_name: str = "lm_head"
) -> ModelSpec:
    """A decoder of Mistral's blocks, with windows as `layer_types` says, if it says so."""
    sizes = DecoderSizes.read(config)
    # transformers reads a missing key as 4096 here, so only a written null means no window.
    kind = GLOBAL if config.is_null("sliding_window") else LOCAL
    kinds = (kind,) * sizes.num_layers
    if config.has("layer_types"):
        kinds = read_kinds(config, sizes.num_layers, period=1)
    return llama_spec(
        config,
        architecture,
        sizes,
        windows=local_windows(config, kinds),
        prefix=prefix,
        head_name=head_name,
    )

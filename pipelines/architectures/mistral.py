"""Mistral (https://arxiv.org/abs/2310.06825), Nemo and Small: Llama, early ones with a window."""

from quire.pipelines.architectures.common import DecoderSizes
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.spec import ModelSpec


def read_mistral(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    if config.has("layer_types"):
        raise config.wrong("layer_types", "nothing for MistralForCausalLM")
    # transformers reads a missing key as 4096 here, so only a written null means no window.
    window = None if config.is_null("sliding_window") else config.integer("sliding_window")
    return llama_spec(config, "MistralForCausalLM", sizes, windows=(window,) * sizes.num_layers)

"""Mistral Small 3.1 and 3.2, and Ministral 3: models that also see, of which the text is served."""

from collections.abc import Mapping

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.ministral3 import DEFAULTS as MINISTRAL3_DEFAULTS
from quire.pipelines.architectures.ministral3 import ministral3_spec
from quire.pipelines.architectures.mistral import mistral_spec
from quire.pipelines.architectures.multimodal import HEAD_NAME, PREFIX, text_only, text_section
from quire.pipelines.architectures.spec import ModelSpec

_MISTRAL_DEFAULTS: Mapping[str, object] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Of transformers' MistralConfig: what a `text_config` may leave out."""


def read_mistral3(config: ConfigFile) -> ModelSpec:
    """Images are refused. Raises ModelError for a key that is missing or wrong."""
    kind = config.section("text_config").string("model_type", "mistral")
    is_ministral3 = kind == "ministral3"
    text = text_section(
        config,
        MINISTRAL3_DEFAULTS if is_ministral3 else _MISTRAL_DEFAULTS,
        model_types=("mistral", "ministral3"),
        tie_by_default=False,
    )
    read = ministral3_spec if is_ministral3 else mistral_spec
    architecture = "Mistral3ForConditionalGeneration"
    spec = read(text, architecture, prefix=PREFIX, head_name=HEAD_NAME)
    if text.has("layer_types"):
        raise text.wrong("layer_types", "nothing")
    return text_only(config, spec)

"""Gemma 3 (https://arxiv.org/abs/2503.19786), text: Gemma 2 with norms of queries and keys instead
of soft caps, and a rotary embedding for each kind of layer."""

from collections.abc import Mapping
from dataclasses import replace

from quire.pipelines.architectures.common import DecoderSizes, read_activation
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.gemma import HEAD_DIM, gemma_spec
from quire.pipelines.architectures.layer_types import (
    GLOBAL,
    LOCAL,
    local_windows,
    read_kinds,
    ropes_by_kind,
)
from quire.pipelines.architectures.multimodal import HEAD_NAME, PREFIX, text_only, text_section
from quire.pipelines.architectures.rope_spec import RopeSpec
from quire.pipelines.architectures.spec import ModelSpec

_DEFAULTS: Mapping[str, object] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
"""Of transformers' Gemma3TextConfig; the `text_config` of published models has little else."""


def read_gemma3(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    return _text_spec(config, "Gemma3ForCausalLM")


def read_gemma3_multimodal(config: ConfigFile) -> ModelSpec:
    """The text part of a model that also sees; images are refused.

    Raises ModelError for a key that is missing or wrong.
    """
    architecture = "Gemma3ForConditionalGeneration"
    text = text_section(config, _DEFAULTS, model_types=("gemma3_text",), tie_by_default=True)
    if text.has("final_logit_softcapping"):
        raise text.wrong("final_logit_softcapping", "null: transformers does not apply it")
    spec = _text_spec(text, architecture, prefix=PREFIX, head_name=HEAD_NAME)
    return text_only(config, spec)


def _text_spec(
    config: ConfigFile, architecture: str, *, prefix: str = "model.", head_name: str = "lm_head"
) -> ModelSpec:
    if config.has("attn_logit_softcapping"):
        raise config.wrong("attn_logit_softcapping", "null: transformers does not apply it")
    sizes = DecoderSizes.read(config, default_head_dim=HEAD_DIM)
    period = config.integer("sliding_window_pattern", 6)
    kinds = read_kinds(config, sizes.num_layers, period)
    ropes = _read_ropes(config, sizes)
    return gemma_spec(
        config,
        architecture,
        sizes,
        ropes=[ropes[kind] for kind in kinds],
        activation=read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        windows=local_windows(config, kinds),
        scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        logit_soft_cap=config.optional_number("final_logit_softcapping"),
        has_post_norms=True,
        has_qk_norm=True,
        prefix=prefix,
        head_name=head_name,
    )


def _read_ropes(config: ConfigFile, sizes: DecoderSizes) -> Mapping[str, RopeSpec]:
    thetas = {
        GLOBAL: config.number("rope_theta", 1_000_000.0),
        LOCAL: config.number("rope_local_base_freq", 10_000.0),
    }
    ropes = ropes_by_kind(config, sizes, thetas)
    if ropes[GLOBAL].kind != "linear":
        return ropes
    # Gemma 3 states the length after scaling, where others state that before it.
    before = int(sizes.max_position_embeddings / ropes[GLOBAL].factor)
    return {**ropes, GLOBAL: replace(ropes[GLOBAL], max_position=before)}

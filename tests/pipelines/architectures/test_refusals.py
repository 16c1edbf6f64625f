"""Keys that would change what dense text models compute, and are not served, are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire.config.errors import ModelError
from quire.pipelines.architectures.load import load_model_spec

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "sliding_window": 16,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
FULL = ["full_attention"] * 2
LOCAL = ["sliding_attention"] * 2

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected false"),
    ("Gemma", {"hidden_activation": "relu"}, "hidden_activation: expected the same as hidden_act"),
    ("Gemma2", {"use_bidirectional_attention": True}, "bidirectional_attention: expected false"),
    ("Gemma2", {"sliding_window": None}, "sliding_window: expected an integer"),
    ("Gemma2", {"layer_types": ["chunked_attention"] * 2}, "layer_types: expected 2 of"),
    ("Gemma2", {"layer_types": FULL * 2}, "layer_types: expected 2 of"),
    ("Gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping: expected a number"),
    ("Gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar: expected a number"),
    ("Gemma3", {"use_bidirectional_attention": True}, "bidirectional_attention: expected false"),
    ("Gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: expected null"),
    ("Gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern: expected an integer"),
    ("Gemma3", {"rope_parameters": YARN}, "rope_parameters: expected an object each for full_"),
    (
        "Gemma3",
        {"rope_parameters": {"full_attention": YARN}, "rope_scaling": YARN},
        "rope_scaling: expected nothing beside rope_parameters",
    ),
    ("Olmo2", {"clip_qkv": 8.0}, "clip_qkv: expected nothing, found 8.0"),
    ("Olmo3", {"clip_qkv": 8.0}, "clip_qkv: expected nothing, found 8.0"),
    ("Olmo3", {"rope_theta": 1e4}, "rope_theta: expected 500000, or rope_parameters instead"),
    ("Olmo3", {"rope_parameters": YARN}, "rope_parameters: expected an object each for full_"),
    ("Granite", {"residual_multiplier": 0}, "residual_multiplier: expected a number"),
    ("Granite", {"logits_scaling": 0}, "logits_scaling: expected a number"),
    ("SmolLM3", {"no_rope_layers": [1]}, "no_rope_layers: expected 2 of 0 or 1"),
    ("SmolLM3", {"no_rope_layers": [1, 2]}, "no_rope_layers: expected 2 of 0 or 1"),
    ("SmolLM3", {"no_rope_layers": [True, False]}, "no_rope_layers: expected a list of integers"),
    ("SmolLM3", {"layer_types": LOCAL}, "layer_types: expected 2 of full_attention"),
    ("Exaone4", {"sliding_window_pattern": "LG"}, "sliding_window_pattern: expected an integer"),
    ("Exaone4", {"sliding_window": None, "layer_types": LOCAL}, "layer_types: expected 2 of full"),
    ("Ministral", {"sliding_window": None, "layer_types": LOCAL}, "sliding_window: expected"),
    ("Ministral3", {}, "rope_parameters: expected a JSON object, found nothing"),
    ("Ministral3", {"rope_parameters": YARN}, "llama_4_scaling_beta: expected a number"),
    (
        "Ministral3",
        {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}, "layer_types": FULL},
        "layer_types: expected nothing",
    ),
]


def read(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    load_model_spec(folder)


@pytest.mark.parametrize(("family", "fields", "message"), REFUSED)
def test_what_is_not_served_is_refused_by_key(
    family: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = {"architectures": [f"{family}ForCausalLM"], **SIZES, **fields}

    with pytest.raises(ModelError, match=message) as raised:
        read(tmp_path, config)

    assert str(raised.value).startswith(str(tmp_path / "config.json"))


OUTER: list[tuple[str, dict[str, Any], str]] = [
    ("Gemma3", {"text_config": None}, "text_config: expected a JSON object, found nothing"),
    ("Gemma3", {"text_config": {"model_type": "llama"}}, "model_type: expected gemma3_text"),
    (
        "Gemma3",
        {"text_config": {"final_logit_softcapping": 30.0}},
        "final_logit_softcapping: expected null",
    ),
    ("Mistral3", {"text_config": {"model_type": "llama"}}, "model_type: expected mistral"),
    ("Mistral3", {"text_config": {**SIZES, "layer_types": FULL}}, "layer_types: expected nothing"),
    (
        "Mistral3",
        {"text_config": {"tie_word_embeddings": True}, "tie_word_embeddings": False},
        "tie_word_embeddings: expected true, as in text_config, found false",
    ),
]


@pytest.mark.parametrize(("family", "fields", "message"), OUTER)
def test_what_is_wrong_about_a_text_config_is_named(
    family: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = {"architectures": [f"{family}ForConditionalGeneration"], **fields}

    with pytest.raises(ModelError, match=message):
        read(tmp_path, config)

"""Configurations as older transformers wrote them mean what transformers 5 makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.spec import ModelSpec

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
OLD_YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 8.0}

OLD: list[tuple[str, str, dict[str, Any]]] = [
    ("GemmaForCausalLM", "GemmaConfig", {"rope_theta": 5e4, "rope_scaling": None}),
    ("GemmaForCausalLM", "GemmaConfig", {"hidden_act": "gelu", "hidden_activation": None}),
    ("Gemma2ForCausalLM", "Gemma2Config", {"rope_theta": 5e4, "sliding_window": 16}),
    (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 16},
    ),
    ("Gemma3ForCausalLM", "Gemma3TextConfig", {"sliding_window": 16, "rope_scaling": None}),
    (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            "sliding_window": 16,
            "sliding_window_pattern": 3,
            "rope_theta": 5e5,
            "rope_local_base_freq": 2e4,
            "rope_scaling": LINEAR,
            "query_pre_attn_scalar": 168,
        },
    ),
    ("Olmo2ForCausalLM", "Olmo2Config", {"rope_theta": 5e5, "rope_scaling": LINEAR}),
    (
        "Olmo3ForCausalLM",
        "Olmo3Config",
        {"rope_theta": 5e5, "rope_scaling": YARN, "sliding_window": 16},
    ),
    ("GraniteForCausalLM", "GraniteConfig", {"rope_theta": 1e7, "attention_multiplier": 0.1}),
    ("SmolLM3ForCausalLM", "SmolLM3Config", {}),
    ("SmolLM3ForCausalLM", "SmolLM3Config", {"rope_theta": 5e6, "rope_scaling": OLD_YARN}),
    (
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {"use_sliding_window": True, "sliding_window": 16, "no_rope_layer_interval": 3},
    ),
    (
        "Exaone4ForCausalLM",
        "Exaone4Config",
        {"rope_theta": 1e6, "rope_scaling": LLAMA3, "sliding_window": 16},
    ),
    ("Exaone4ForCausalLM", "Exaone4Config", {"sliding_window": 16, "sliding_window_pattern": 2}),
    ("MinistralForCausalLM", "MinistralConfig", {"sliding_window": 16, "rope_theta": 1e8}),
]


def read(folder: Path, config: dict[str, Any]) -> ModelSpec:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_spec(folder)


def read_as_transformers_writes(
    folder: Path, config_class: str, old: dict[str, Any]
) -> tuple[ModelSpec, dict[str, Any]]:
    getattr(transformers, config_class).from_dict(old).save_pretrained(folder)
    return load_model_spec(folder), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("architecture", "config_class", "fields"), OLD)
def test_old_and_new_configs_mean_the_same(
    architecture: str, config_class: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    old = {"architectures": [architecture], **SIZES, "bos_token_id": 1, "eos_token_id": 2, **fields}

    new_spec, new = read_as_transformers_writes(tmp_path / "new", config_class, old)

    assert "rope_parameters" in new
    assert read(tmp_path / "old", old) == new_spec


GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "siglip_vision_model"},
}
MISTRAL_SMALL = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "tie_word_embeddings": False,
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "model_type": "mistral",
        "num_hidden_layers": 40,
        "rope_theta": 1e9,
        "sliding_window": None,
        "vocab_size": 131072,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "pixtral"},
}


@pytest.mark.parametrize(
    ("config_class", "old"), [("Gemma3Config", GEMMA3_4B), ("Mistral3Config", MISTRAL_SMALL)]
)
def test_text_config_has_the_defaults_of_transformers(
    config_class: str, old: dict[str, Any], tmp_path: Path
) -> None:
    new_spec, new = read_as_transformers_writes(tmp_path / "new", config_class, old)

    assert new["text_config"]["num_attention_heads"] > 0
    assert read(tmp_path / "old", old) == new_spec
    assert new_spec.checkpoint_dtype == "bfloat16"


def test_eos_ids_outside_text_config_count(tmp_path: Path) -> None:
    assert read(tmp_path, GEMMA3_4B).eos_token_ids == (1, 106)


def test_gemma3_states_its_length_after_scaling(tmp_path: Path) -> None:
    assert read(tmp_path, GEMMA3_4B).longest_context == 131_072


@pytest.mark.parametrize(
    ("outer", "inner", "is_tied"),
    [(None, None, False), (None, True, True), (True, False, False), (True, None, True)],
)
def test_the_text_model_says_whether_its_head_is_tied(
    outer: bool | None, inner: bool | None, is_tied: bool, tmp_path: Path
) -> None:
    text = {**MISTRAL_SMALL["text_config"], "tie_word_embeddings": inner}  # type: ignore[dict-item]
    config = {**MISTRAL_SMALL, "tie_word_embeddings": outer, "text_config": text}
    config = {key: value for key, value in config.items() if value is not None}
    if inner is None:
        del text["tie_word_embeddings"]

    assert read(tmp_path, config).tie_word_embeddings == is_tied


def test_exaone4_without_a_window_has_rope_everywhere(tmp_path: Path) -> None:
    fields = {"sliding_window": None, "layer_types": ["full_attention"] * 8}
    config = {"architectures": ["Exaone4ForCausalLM"], **SIZES, **fields}

    spec = read(tmp_path, config)

    assert {layer.attention.rope.kind for layer in spec.layers} == {"default"}
    assert {layer.window for layer in spec.kv_layers} == {None}


def test_mistral_with_layer_types_is_ministral(tmp_path: Path) -> None:
    kinds = ["full_attention", *["sliding_attention"] * 3] * 2
    config = {**SIZES, "sliding_window": 16, "layer_types": kinds, "rope_theta": 1e8}

    mistral = read(tmp_path, {**config, "architectures": ["MistralForCausalLM"]})
    ministral = read(tmp_path, {**config, "architectures": ["MinistralForCausalLM"]})

    assert mistral.layers == ministral.layers
    assert [layer.window for layer in mistral.kv_layers] == [None, 16, 16, 16] * 2

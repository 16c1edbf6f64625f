"""Granite, SmolLM3, Ministral, Ministral 3, and the post-norm models OLMo 2, OLMo 3 and EXAONE 4."""

import functools
from collections.abc import Mapping
from typing import Any

from parity.cases import ParityCase, save, save_in_shards
from parity.random_models import make_random_model

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_DEFAULT = {"rope_type": "default", "rope_theta": 1000.0}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
_TIED, _UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}

_COMMON = {"attn_implementation": "eager", "pad_token_id": 0}
_GRANITE = {
    "embedding_multiplier": 12.3,
    "attention_multiplier": 0.11,
    "residual_multiplier": 0.22,
    "logits_scaling": 0.7,
}
_OLMO3 = {
    "sliding_window": 20,
    "layer_types": [_LOCAL, _LOCAL, _GLOBAL],
    "rope_parameters": {_GLOBAL: _YARN, _LOCAL: _DEFAULT},
}
_EXAONE4 = {"sliding_window": 20, "layer_types": [_LOCAL, _GLOBAL, _LOCAL]}
_NO_WINDOW = {"sliding_window": None, "layer_types": [_GLOBAL] * 3}
MINISTRAL3: Mapping[str, Any] = {
    "rope_parameters": {
        **_YARN,
        "original_max_position_embeddings": 20,
        "factor": 8.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.5,
    },
}

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("Granite", _GRANITE),
    "granite plain": ("Granite", {"attention_multiplier": 0.25, "rope_parameters": _LINEAR}),
    "granite tied biases": (
        "Granite",
        {**_GRANITE, **_TIED, "attention_bias": True, "mlp_bias": True},
    ),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3 untied interval": ("SmolLM3", {**_UNTIED, "no_rope_layer_interval": 2}),
    "smollm3 window yarn": (
        "SmolLM3",
        {
            "use_sliding_window": True,
            "sliding_window": 20,
            "rope_parameters": _YARN,
            "no_rope_layers": [0, 1, 0],
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "olmo2": ("Olmo2", {"attention_bias": False}),
    "olmo2 tied biases": ("Olmo2", {**_TIED, "attention_bias": True}),
    "olmo2 all kv heads": ("Olmo2", {"num_key_value_heads": 4, "rope_parameters": _LINEAR}),
    "olmo3": ("Olmo3", _OLMO3),
    "olmo3 tied biases": ("Olmo3", {**_OLMO3, **_TIED, "attention_bias": True}),
    "exaone4": ("Exaone4", {**_EXAONE4, "rope_parameters": _LLAMA3}),
    "exaone4 pattern": ("Exaone4", {"sliding_window": 20, "sliding_window_pattern": 2}),
    "exaone4 no window tied": ("Exaone4", {**_NO_WINDOW, **_TIED}),
    "ministral": ("Ministral", {"sliding_window": 20, "layer_types": [_LOCAL, _GLOBAL, _LOCAL]}),
    "ministral tied": ("Ministral", {**_TIED, "sliding_window": 20, "rope_parameters": _YARN}),
    "ministral3": ("Ministral3", dict(MINISTRAL3)),
    "ministral3 tied window": ("Ministral3", {**MINISTRAL3, **_TIED, "sliding_window": 20}),
}
_IN_BFLOAT16 = ("granite", "smollm3", "olmo2", "olmo3", "exaone4", "ministral", "ministral3")


def _case(name: str, encoding: str = "float32") -> ParityCase:
    family, fields = _MODELS[name]
    return ParityCase(
        architecture=f"{family}ForCausalLM",
        variant=name,
        encoding=encoding,
        make=functools.partial(make_random_model, family, **_COMMON, **fields),
        write=save_in_shards if encoding == "float32" else save,
    )


CASES = [*(_case(name) for name in _MODELS), *(_case(name, "bfloat16") for name in _IN_BFLOAT16)]

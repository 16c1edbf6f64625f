"""Gemma, Gemma 2 and the text models of Gemma 3."""

import functools
from collections.abc import Mapping
from typing import Any

import transformers
from parity.cases import ParityCase
from parity.random_models import SIZES, randomize

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 1000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
}
_CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0}
_NO_CAPS = dict.fromkeys(_CAPS)
_UNTIED = {"tie_word_embeddings": False}

_GEMMA2 = {"sliding_window": 20, "query_pre_attn_scalar": 24, **_CAPS}
GEMMA3: Mapping[str, Any] = {
    "sliding_window": 20,
    "query_pre_attn_scalar": 24,
    "layer_types": [_LOCAL, _LOCAL, _GLOBAL],
    "rope_parameters": {_GLOBAL: LINEAR, _LOCAL: DEFAULT},
}

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", {}),
    "gemma untied biases": ("Gemma", {**_UNTIED, "attention_bias": True}),
    "gemma gelu": ("Gemma", {"hidden_act": "gelu", "rope_parameters": LINEAR}),
    "gemma relu": ("Gemma", {"hidden_act": "relu"}),
    "gemma2": ("Gemma2", _GEMMA2),
    "gemma2 untied biases": ("Gemma2", {**_GEMMA2, **_UNTIED, "attention_bias": True}),
    "gemma2 no caps": ("Gemma2", {**_GEMMA2, **_NO_CAPS, "rope_parameters": YARN}),
    "gemma2 layer types": ("Gemma2", {**_GEMMA2, "layer_types": [_GLOBAL, _LOCAL, _LOCAL]}),
    "gemma3": ("Gemma3", dict(GEMMA3)),
    "gemma3 untied": ("Gemma3", {**GEMMA3, **_UNTIED}),
    "gemma3 logit cap biases": (
        "Gemma3",
        {**GEMMA3, "final_logit_softcapping": 10.0, "attention_bias": True},
    ),
    "gemma3 yarn": ("Gemma3", {**GEMMA3, "rope_parameters": {_GLOBAL: YARN, _LOCAL: LINEAR}}),
}
_IN_BFLOAT16 = ("gemma", "gemma2", "gemma3")


def _make(family: str, **fields: Any) -> transformers.PreTrainedModel:
    config_class = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    fields = {**SIZES, "attn_implementation": "eager", **fields}
    return randomize(f"{family}ForCausalLM", getattr(transformers, config_class)(**fields))


def _case(name: str, encoding: str = "float32") -> ParityCase:
    family, fields = _MODELS[name]
    return ParityCase(
        architecture=f"{family}ForCausalLM",
        variant=name,
        encoding=encoding,
        make=functools.partial(_make, family, **fields),
    )


CASES = [*(_case(name) for name in _MODELS), *(_case(name, "bfloat16") for name in _IN_BFLOAT16)]

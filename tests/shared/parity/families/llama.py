"""Llama, Qwen2, Qwen3 and Mistral."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from parity.cases import LENGTH, ParityCase, rounded_to, save_in_shards
from parity.random_models import make_random_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i / 2 for i in range(8)],
}
WINDOW = {"use_sliding_window": True, "sliding_window": 20}

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head": ("Llama", {"num_key_value_heads": 1, "num_hidden_layers": 1}),
    "llama all kv heads": ("Llama", {"num_key_value_heads": 4, "head_dim": 24}),
    "llama odd sizes": (
        "Llama",
        {
            "vocab_size": 13,
            "hidden_size": 72,
            "intermediate_size": 97,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 40,
        },
    ),
    "llama linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "llama dynamic rope": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama dynamic rope stretched": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0},
            "max_position_embeddings": LENGTH - 30,
        },
    ),
    "llama llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama yarn rope": ("Llama", {"rope_parameters": YARN}),
    "llama yarn mscale": (
        "Llama",
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 16.0}},
    ),
    "llama yarn attention factor": (
        "Llama",
        {"rope_parameters": {**YARN, "attention_factor": 1.3, "truncate": False}},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen2 two windows": ("Qwen2", {**WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3 bias": ("Qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3 windows": ("Qwen3", {**WINDOW, "max_window_layers": 0}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral window": ("Mistral", {"sliding_window": 20}),
    "mistral window of one": ("Mistral", {"sliding_window": 1, "head_dim": 8}),
    "mistral window beyond": ("Mistral", {"sliding_window": 1000, "head_dim": 24}),
    "mistral longrope": ("Mistral", {"sliding_window": None, "rope_parameters": LONGROPE}),
}


def _case(name: str, encoding: str = "float32") -> ParityCase:
    family, fields = _MODELS[name]
    if "rope_parameters" in fields:
        rope = {"rope_theta": 10000.0, **fields["rope_parameters"]}
        fields = {**fields, "rope_parameters": rope}
    return ParityCase(
        architecture=f"{family}ForCausalLM",
        variant=name,
        encoding=encoding,
        make=functools.partial(make_random_model, family, attn_implementation="eager", **fields),
        write=save_in_shards,
        # The length that transformers stretches for here, which is that of what it is given.
        settings={"max_length": LENGTH} if "stretched" in name else {},
    )


_IN_BFLOAT16 = (
    "llama",
    "llama biases",
    "llama odd sizes",
    "qwen2 tied",
    "qwen3",
    "mistral window",
    "mistral window beyond",
)


def _save_in_float16(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """A CPU serves it in float32, which holds the same numbers."""
    save_in_shards(rounded_to(model, torch.float16), folder)
    model.float()
    return folder


CASES = [
    *(_case(name) for name in _MODELS),
    *(_case(name, "bfloat16") for name in _IN_BFLOAT16),
    replace(_case("llama tied", "float16"), write=_save_in_float16),
    replace(_case("qwen2", "float16"), write=_save_in_float16),
]

"""Phi-3, Phi, StableLM, GPT-2, GPT-NeoX, StarCoder2 and GLM."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from parity.cases import ParityCase, save
from parity.random_models import MAX_POSITIONS, make_random_model
from safetensors.torch import load_file, save_file

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i / 2 for i in range(8)],
}
NARROW = {**LONGROPE, "short_factor": [1.0, 1.5, 2.5, 4.0, 5.0, 6.0]}
NARROW["long_factor"] = [2.0, 3.0, 4.0, 8.0, 9.0, 12.0]

_DEFAULTS: dict[str, dict[str, Any]] = {
    "GPT2": {"class_suffix": "LMHeadModel"},
    "GPTNeoX": {"num_key_value_heads": 4},
    "Phi3": {"pad_token_id": 0},
    "Glm": {"pad_token_id": 0, "rms_norm_eps": 1e-5},
    "Glm4": {"pad_token_id": 0, "rms_norm_eps": 1e-5},
}


def save_as_old(
    prefix: str, attention: str, model: transformers.PreTrainedModel, folder: Path
) -> Path:
    """With the mask buffers of old versions, and without what the head's model has before names."""
    save(model, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for index in range(model.config.num_hidden_layers):
        block = f"{prefix}{attention}".format(index)
        tensors[f"{block}.bias"] = torch.ones(1, 1, MAX_POSITIONS, MAX_POSITIONS, dtype=torch.uint8)
        tensors[f"{block}.masked_bias"] = torch.tensor(-1e4)
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    save_file(bare, path)
    return folder


_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("Phi3", {}),
    "phi3 tied": ("Phi3", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "phi3 window": ("Phi3", {"sliding_window": 20}),
    "phi3 longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 40},
    ),
    "phi3 longrope short": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 120},
    ),
    "phi3 partial longrope": (
        "Phi3",
        {
            "rope_parameters": {**NARROW, "partial_rotary_factor": 0.75},
            "original_max_position_embeddings": 40,
            "sliding_window": 100,
        },
    ),
    "phi": ("Phi", {"num_key_value_heads": 4}),
    "phi head norms": ("Phi", {"qk_layernorm": True}),
    "stablelm": ("StableLm", {}),
    "stablelm tied": ("StableLm", {"tie_word_embeddings": True, "use_qkv_bias": True}),
    "stablelm parallel": ("StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "gpt2": ("GPT2", {}),
    "gpt2 untied": ("GPT2", {"tie_word_embeddings": False, "n_inner": 96}),
    "gpt2 scales": (
        "GPT2",
        {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    ),
    "gpt2 upcast": (
        "GPT2",
        {"reorder_and_upcast_attn": True, "activation_function": "relu"},
    ),
    "gpt2 old names": ("GPT2", {}),
    "gpt neox": ("GPTNeoX", {}),
    "gpt neox tied": ("GPTNeoX", {"tie_word_embeddings": True, "attention_bias": False}),
    "gpt neox sequential": ("GPTNeoX", {"use_parallel_residual": False}),
    "gpt neox old names": ("GPTNeoX", {"tie_word_embeddings": True}),
    "glm": ("Glm", {}),
    "glm tied": ("Glm", {"tie_word_embeddings": True, "attention_bias": False}),
    "glm4": ("Glm4", {}),
    "starcoder2": ("Starcoder2", {}),
    "starcoder2 untied": ("Starcoder2", {"tie_word_embeddings": False, "use_bias": False}),
    "starcoder2 window": ("Starcoder2", {"sliding_window": 20}),
}

_WRITERS: dict[str, Callable[[transformers.PreTrainedModel, Path], Path]] = {
    "gpt2 old names": functools.partial(save_as_old, "transformer.", "h.{}.attn"),
    "gpt neox old names": functools.partial(save_as_old, "gpt_neox.", "layers.{}.attention"),
}


def _case(name: str, encoding: str = "float32") -> ParityCase:
    family, fields = _MODELS[name]
    fields = {**_DEFAULTS.get(family, {}), **fields}
    return ParityCase(
        architecture=f"{family}{fields.get('class_suffix', 'ForCausalLM')}",
        variant=name,
        encoding=encoding,
        make=functools.partial(make_random_model, family, attn_implementation="eager", **fields),
        write=_WRITERS.get(name, save),
    )


_IN_BFLOAT16 = (
    "phi3 partial longrope",
    "phi",
    "stablelm parallel",
    "gpt2",
    "gpt neox",
    "starcoder2",
    "glm tied",
    "glm4",
)

CASES = [*(_case(name) for name in _MODELS), *(_case(name, "bfloat16") for name in _IN_BFLOAT16)]

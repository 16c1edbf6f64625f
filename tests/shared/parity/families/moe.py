"""Mixtral, Qwen2-MoE and Qwen3-MoE."""

import functools
from typing import Any

from parity.cases import ParityCase, save_in_shards
from parity.moe_models import make_decided_mixture, make_random_mixture

QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
SHARED = {"shared_expert_intermediate_size": 56}
WINDOW = {"use_sliding_window": True, "sliding_window": 20}

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral one of six": (
        "Mixtral",
        {"num_local_experts": 6, "num_experts_per_tok": 1, "sliding_window": 20},
    ),
    "mixtral all experts": ("Mixtral", {"num_local_experts": 2, "tie_word_embeddings": True}),
    "qwen2 moe": ("Qwen2Moe", {**QWEN, **SHARED}),
    "qwen2 moe renormalized": (
        "Qwen2Moe",
        {**QWEN, **SHARED, **WINDOW, "max_window_layers": 2, "norm_topk_prob": True},
    ),
    "qwen2 moe sparse step": (
        "Qwen2Moe",
        {**QWEN, **SHARED, "decoder_sparse_step": 2, "qkv_bias": False},
    ),
    "qwen3 moe": ("Qwen3Moe", {**QWEN, "norm_topk_prob": True}),
    "qwen3 moe many experts": (
        "Qwen3Moe",
        {**QWEN, "num_experts": 16, "num_experts_per_tok": 5, "moe_intermediate_size": 24},
    ),
    "qwen3 moe dense layer": (
        "Qwen3Moe",
        {**QWEN, **WINDOW, "mlp_only_layers": [1], "attention_bias": True},
    ),
    "qwen3 moe top 1": ("Qwen3Moe", {**QWEN, "num_experts_per_tok": 1}),
}


def _case(name: str, encoding: str = "float32") -> ParityCase:
    family, fields = _MODELS[name]
    make = make_decided_mixture if encoding == "bfloat16" else make_random_mixture
    return ParityCase(
        architecture=f"{family}ForCausalLM",
        variant=name,
        encoding=encoding,
        make=functools.partial(make, family, **fields),
        write=save_in_shards,
    )


_IN_BFLOAT16 = ("mixtral", "mixtral one of six", "qwen2 moe", "qwen3 moe", "qwen3 moe top 1")

CASES = [*(_case(name) for name in _MODELS), *(_case(name, "bfloat16") for name in _IN_BFLOAT16)]

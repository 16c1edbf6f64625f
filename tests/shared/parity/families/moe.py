"""Mixtral, Qwen2-MoE and Qwen3-MoE."""

import functools
import json
from pathlib import Path
from typing import Any

import transformers
from parity.cases import ParityCase, save, save_in_shards
from parity.families.quantized import float8
from parity.moe_models import make_decided_mixture, make_random_mixture
from safetensors.torch import load_file, save_file

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
    "qwen3 moe wide": ("Qwen3Moe", {**QWEN, "moe_intermediate_size": 160}),
    "qwen3 moe top 1": ("Qwen3Moe", {**QWEN, "num_experts_per_tok": 1}),
}


def save_with_fp8_experts(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """As Qwen/Qwen3-30B-A3B-FP8 has its experts; the model gets the dequantized numbers."""
    save(model, folder)
    path = folder / "model.safetensors"
    tensors, state = load_file(path), model.state_dict()
    for name in [name for name in tensors if ".experts." in name]:
        prefix, _, rest = name.partition("experts.")
        expert, projection, _ = rest.split(".")
        numbers, stored = float8(tensors.pop(name), by="block", suffix="weight_scale_inv")
        tensors |= {name.replace("weight", suffix): part for suffix, part in stored.items()}
        if projection == "down_proj":
            state[f"{prefix}experts.down_proj"][int(expert)] = numbers
        else:
            half = 0 if projection == "gate_proj" else 1
            state[f"{prefix}experts.gate_up_proj"][int(expert)].chunk(2)[half].copy_(numbers)
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "self_attn", "mlp.gate"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _case(name: str, encoding: str = "float32") -> ParityCase:
    family, fields = _MODELS[name]
    write = save_with_fp8_experts if encoding == "fp8" else save_in_shards
    make = make_decided_mixture if encoding == "bfloat16" else make_random_mixture
    return ParityCase(
        architecture=f"{family}ForCausalLM",
        variant=name,
        encoding=encoding,
        make=functools.partial(make, family, **fields),
        write=write,
    )


_IN_BFLOAT16 = ("mixtral", "mixtral one of six", "qwen2 moe", "qwen3 moe", "qwen3 moe top 1")

CASES = [
    *(_case(name) for name in _MODELS),
    *(_case(name, "bfloat16") for name in _IN_BFLOAT16),
    _case("qwen3 moe wide", "fp8"),
]

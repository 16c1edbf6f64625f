"""Latent attention: DeepSeek-V2 and V3, GLM-4 MoE Lite, MiniCPM3 and Youtu."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from parity.cases import ParityCase, save
from parity.moe_models import decide_mixture, spread_mixture
from parity.packing import float8
from parity.random_models import make_random_model
from safetensors.torch import load_file, save_file

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "beta_fast": 32,
    "beta_slow": 1,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 3.5],
}
LATENT = {
    "num_key_value_heads": 4,
    # Of what turns, as the configurations set it themselves.
    "head_dim": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    # Those inside attention have 1e-6 all the same.
    "rms_norm_eps": 1e-2,
}
DENSE = {"first_k_dense_replace": 3}
EXPERTS = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "routed_scaling_factor": 1.7,
}
GROUPS = {**EXPERTS, "n_group": 4, "topk_group": 2}
EXTRA = {"model.layers.3.eh_proj.weight": torch.ones(64, 128)}

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2 dense": ("DeepseekV2", DENSE),
    "v2 dense biases": (
        "DeepseekV2",
        {**DENSE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "v2 dense direct queries": ("DeepseekV2", {**DENSE, "q_lora_rank": None}),
    "v2 dense yarn": (
        "DeepseekV2",
        {**DENSE, "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.5}},
    ),
    "v2": ("DeepseekV2", EXPERTS),
    "v2 groups": ("DeepseekV2", {**GROUPS, "topk_method": "group_limited_greedy"}),
    "v3 dense": ("DeepseekV3", DENSE),
    "v3 dense halves": (
        "DeepseekV3",
        {**DENSE, "rope_interleave": False, "q_lora_rank": None, "attention_bias": True},
    ),
    "v3 dense yarn": (
        "DeepseekV3",
        {**DENSE, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "v3": ("DeepseekV3", GROUPS),
    "v3 one group": (
        "DeepseekV3",
        {**EXPERTS, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "q_lora_rank": None},
    ),
    "glm4 moe lite": (
        "Glm4MoeLite",
        {**GROUPS, "mlp_layer_types": ["sparse", "dense", "sparse"], "rope_parameters": YARN},
    ),
    "minicpm3": (
        "MiniCPM3",
        {"dim_model_base": 16, "scale_emb": 12, "scale_depth": 1.4, "rope_parameters": LONGROPE},
    ),
    "minicpm3 without scales": (
        "MiniCPM3",
        {"dim_model_base": None, "scale_depth": None, "tie_word_embeddings": False},
    ),
    "youtu": ("Youtu", {"tie_word_embeddings": True}),
}


def _make(family: str, is_decided: bool, fields: dict[str, Any]) -> transformers.PreTrainedModel:
    model = make_random_model(family, attn_implementation="eager", **{**LATENT, **fields})
    if is_decided:
        return decide_mixture(model)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.3)
    return spread_mixture(model)


def _save_with_extra_layer(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """With a weight of the layer that predicts a further token, as V3 is released."""
    path = save(model, folder) / "model.safetensors"
    save_file({**load_file(path), **EXTRA}, path, metadata={"format": "pt"})
    return folder


def _save_in_float8(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """As V3 is released: also every projection in blocks of fp8, but not the router."""
    path = save(model, folder) / "model.safetensors"
    plain, packed = load_file(path), {}
    for name in [name for name in plain if "_proj" in name]:
        plain[name], found = float8(plain[name], by="block", suffix="weight_scale_inv")
        packed[name] = found["weight"]
        packed[f"{name}_scale_inv"] = found["weight_scale_inv"]
    save_file(plain, path, metadata={"format": "pt"})
    model.load_state_dict(type(model).from_pretrained(folder).state_dict())
    save_file({**plain, **packed, **EXTRA}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _case(name: str, encoding: str = "float32") -> ParityCase:
    family, fields = _MODELS[name]
    is_decided = encoding == "bfloat16" and "n_routed_experts" in fields
    write = _save_with_extra_layer if family == "DeepseekV3" else save
    return ParityCase(
        architecture=f"{family}ForCausalLM",
        variant=name,
        encoding=encoding,
        make=functools.partial(_make, family, is_decided, fields),
        write=_save_in_float8 if encoding == "fp8 blocks" else write,
    )


_IN_BFLOAT16 = (
    "v2 dense direct queries",
    "v2 dense yarn",
    "v2 groups",
    "v3 dense",
    "v3",
    "minicpm3",
)

CASES = [
    *(_case(name) for name in _MODELS),
    *(_case(name, "bfloat16") for name in _IN_BFLOAT16),
    _case("v3", "fp8 blocks"),
]

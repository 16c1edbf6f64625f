"""GPT-OSS, with experts of plain numbers and of MXFP4."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from parity.cases import ParityCase, save, save_in_shards
from parity.moe_models import make_decided_mixture, make_random_mixture
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors

YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "truncate": False,
}
BASE = {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": YARN}

_MODELS: dict[str, dict[str, Any]] = {
    "gpt-oss": {**BASE, "sliding_window": 20},
    "gpt-oss top 1": {**BASE, "sliding_window": 5, "num_experts_per_tok": 1},
    "gpt-oss top 4 of 9": {
        **BASE,
        "num_local_experts": 9,
        "num_experts_per_tok": 4,
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        "swiglu_limit": 1.5,
        "swiglu_alpha": 1.2,
        "attention_bias": False,
    },
}


def save_in_mxfp4(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """As openai/gpt-oss-20b is published; the model gets the values that transformers reads there."""
    save(model, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    state = model.state_dict()
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        weight_EKN = tensors.pop(name)
        blocks, scales = _packed(weight_EKN.transpose(1, 2))
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        state[name].copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _packed(weight_ENK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest MXFP4 numbers: bytes [E, N, K / 32, 16] and exponents [E, N, K / 32]."""
    groups = weight_ENK.unflatten(-1, (-1, 32))
    exponents = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
    scaled = groups / torch.exp2(exponents)[..., None]
    values = torch.tensor(FP4_VALUES)
    codes = (scaled[..., None] - values).abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents + 127).to(torch.uint8)


def _case(name: str, encoding: str = "float32") -> ParityCase:
    make = make_decided_mixture if encoding == "bfloat16" else make_random_mixture
    return ParityCase(
        architecture="GptOssForCausalLM",
        variant=name,
        encoding=encoding,
        make=functools.partial(make, "GptOss", **_MODELS[name]),
        write=save_in_mxfp4 if encoding == "mxfp4" else save_in_shards,
    )


CASES = [
    *(_case(name) for name in _MODELS),
    *(_case(name, "bfloat16") for name in ("gpt-oss", "gpt-oss top 1")),
    *(_case(name, "mxfp4") for name in ("gpt-oss", "gpt-oss top 1")),
]

"""Quantized checkpoints, packed by hand (`parity.packing`), and quantization at load.

The reference is transformers with the dequantized weights put into the model. Both compute with
the same numbers, so that differences are those of float32 sums. Where activations are quantized
on every device (w8a8) the reference's go through the same int8: there the last bit of a sum may
decide which way a number is rounded, and the difference is that of a few such numbers.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from parity.cases import ParityCase
from parity.moe_models import make_random_mixture
from parity.packing import (
    BLOCK,
    GROUP,
    Tensors,
    awq,
    blocks_at_load,
    float8,
    float8_at_load,
    gptq,
    gptq_with_bias,
    int8,
    int8_at_load,
    mxfp4,
    nvfp4,
    pack_quantized,
)
from parity.random_models import make_random_model
from safetensors.torch import load_file, save_file

Quantize = Callable[[torch.Tensor], tuple[torch.Tensor, Tensors]]
"""A weight [N, K] to its dequantized numbers, and the tensors of the checkpoint by suffix."""

NOT_LINEAR = ("embed_tokens", "mlp.gate.")


@dataclass(frozen=True, kw_only=True)
class Method:
    """How linear layers are quantized, and what config.json says of it."""

    quantize: Quantize
    config: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ("lm_head",)
    own_file: Mapping[str, Any] = field(default_factory=dict)
    rounds_inputs: bool = False
    """Activations go through int8, but those of the head."""

    def write(self, model: transformers.PreTrainedModel, folder: Path) -> Path:
        """Save the quantized checkpoint; afterwards the model has the dequantized weights."""
        model.save_pretrained(folder)
        path = folder / "model.safetensors"
        plain = load_file(path)
        packed: Tensors = {}
        for name, tensor in load_file(path).items():
            if tensor.ndim == 2 and not any(part in name for part in (*self.skipped, *NOT_LINEAR)):
                numbers, found = self.quantize(tensor.float())
                plain[name] = numbers.to(tensor.dtype)
                layer = name.removesuffix(".weight")
                if self.rounds_inputs and layer != "lm_head":
                    model.get_submodule(layer).register_forward_pre_hook(_through_int8)
                packed |= {f"{layer}.{suffix}": part for suffix, part in found.items()}
            else:
                packed[name] = tensor
        save_file(plain, path, metadata={"format": "pt"})
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
        save_file(packed, path)
        self._configure(folder)
        return folder

    def _configure(self, folder: Path) -> None:
        path = folder / "config.json"
        if self.config:
            config = json.loads(path.read_text())
            path.write_text(json.dumps({**config, "quantization_config": self.config}))
        if self.own_file:
            (folder / "hf_quant_config.json").write_text(json.dumps(self.own_file))


def _through_int8(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    scale = inputs[0].abs().amax(-1, keepdim=True) / 127
    return (inputs[0] / scale).round() * scale


def _gptq(quantize: Quantize = gptq, **fields: Any) -> Method:
    values = {"bits": 4, "group_size": GROUP, "sym": False, "desc_act": False, **fields}
    skipped = () if fields.get("lm_head") else ("lm_head",)
    config = {"quant_method": "gptq", **values}
    return Method(quantize=quantize, config=config, skipped=skipped)


def _compressed(
    quantize: Quantize,
    file_format: str,
    weights: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    ignore: tuple[str, ...] = ("lm_head",),
    **fields: Any,
) -> Method:
    group = {
        "targets": ["Linear"],
        "weights": {"symmetric": True, "dynamic": False, **weights},
        "input_activations": inputs,
        "output_activations": None,
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": file_format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "sparsity_config": {},
    }
    skipped = ("lm_head", "layers.1.mlp") if len(ignore) > 1 else ("lm_head",)
    return Method(quantize=quantize, config=config, skipped=skipped, **fields)


_E4M3 = {"num_bits": 8, "type": "float"}
_INT8 = {"num_bits": 8, "type": "int"}
_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
_FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group"}
_part = functools.partial

METHODS: Mapping[str, Method] = {
    "gptq": _gptq(),
    "gptq v2": _gptq(_part(gptq, offset=0), checkpoint_format="gptq_v2"),
    "gptq act order": _gptq(_part(gptq, order=True), desc_act=True),
    "gptq one group": _gptq(_part(gptq, group_size=-1), group_size=-1),
    "gptq head": _gptq(lm_head=True),
    "gptq extra bias": _gptq(gptq_with_bias),
    "awq": Method(
        quantize=awq,
        config={
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["mlp.down_proj"],
        },
        skipped=("lm_head", "mlp.down_proj"),
    ),
    "w8a8 compressed": _compressed(
        int8,
        "int-quantized",
        {**_INT8, "strategy": "channel"},
        {**_INT8, "strategy": "token", "dynamic": True},
        rounds_inputs=True,
    ),
    "int8 compressed": _compressed(int8, "int-quantized", {**_INT8, "strategy": "channel"}),
    "int8 compressed one scale": _compressed(
        _part(int8, by="tensor"), "naive-quantized", {**_INT8, "strategy": "tensor"}
    ),
    "int4 compressed": _compressed(pack_quantized, "pack-quantized", _INT4),
    "int4 compressed zeros": _compressed(
        _part(pack_quantized, symmetric=False), "pack-quantized", {**_INT4, "symmetric": False}
    ),
    "int4 compressed act order": _compressed(
        _part(pack_quantized, order=True), "pack-quantized", {**_INT4, "actorder": "group"}
    ),
    "fp8 compressed static": _compressed(
        _part(float8, by="tensor", inputs="input_scale"),
        "float-quantized",
        {**_E4M3, "strategy": "tensor"},
        {**_E4M3, "strategy": "tensor", "dynamic": False},
    ),
    "fp8 compressed channels": _compressed(
        _part(float8, by="row", dtype=torch.bfloat16),
        "float-quantized",
        {**_E4M3, "strategy": "channel"},
        {**_E4M3, "strategy": "token", "dynamic": True},
        ignore=("lm_head", r"re:.*layers\.1\.mlp\..*"),
    ),
    "fp8 static": Method(
        quantize=_part(float8, by="tensor", inputs="input_scale"),
        config={
            "quant_method": "fp8",
            "activation_scheme": "static",
            "ignored_layers": ["lm_head", "model.layers.0.self_attn.o_proj"],
        },
        skipped=("lm_head", "layers.0.self_attn.o_proj"),
    ),
    "fp8 dynamic": Method(
        quantize=_part(float8, by="tensor", suffix="weight_scale_inv"),
        config={
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": None,
        },
    ),
    "fp8 blocks": Method(
        quantize=_part(float8, by="block", suffix="weight_scale_inv"),
        config={
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [BLOCK, BLOCK],
        },
    ),
    "fbgemm fp8": Method(
        quantize=_part(float8, by="row"),
        config={
            "quant_method": "fbgemm_fp8",
            "activation_scale_ub": 1200.0,
            "modules_to_not_convert": ["model.layers.1"],
        },
        skipped=("lm_head", "layers.1"),
    ),
    "nvfp4": Method(
        quantize=_part(nvfp4, compressed=False),
        own_file={
            "producer": {"name": "modelopt"},
            "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_*"]},
        },
    ),
    "nvfp4 compressed": _compressed(
        _part(nvfp4, compressed=True), "nvfp4-pack-quantized", {**_FP4, "group_size": 16}
    ),
    "mxfp4 compressed": _compressed(mxfp4, "mxfp4-pack-quantized", {**_FP4, "group_size": 32}),
}

ROUNDED_INPUTS = 2e-2

AT_LOAD: Mapping[str, Method] = {
    "int8": Method(quantize=int8_at_load, skipped=()),
    "w8a8": Method(quantize=int8_at_load, skipped=(), rounds_inputs=True),
    "fp8": Method(quantize=float8_at_load),
    "q4_0": Method(quantize=_part(blocks_at_load, kind="Q4_0")),
    "q8_0": Method(quantize=_part(blocks_at_load, kind="Q8_0")),
}


def _case(
    encoding: str, method: Method, variant: str = "llama quantized", **fields: Any
) -> ParityCase:
    """Sizes leave a part of a block of 128 in both directions."""
    return ParityCase(
        architecture="LlamaForCausalLM",
        variant=variant,
        encoding=encoding,
        make=_part(
            make_random_model, "Llama", intermediate_size=192, num_hidden_layers=2, vocab_size=216
        ),
        write=method.write,
        is_mean=method.rounds_inputs,
        tolerance=ROUNDED_INPUTS if method.rounds_inputs else 1e-4,
        **fields,
    )


def _mixture(name: str) -> ParityCase:
    """Experts are quantized like other layers, their router is not."""
    return ParityCase(
        architecture="Qwen3MoeForCausalLM",
        variant="qwen3 moe quantized",
        encoding=name,
        make=_part(
            make_random_mixture,
            "Qwen3Moe",
            num_hidden_layers=2,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
        ),
        write=METHODS[name].write,
    )


CASES = [
    *(_case(name, method) for name, method in METHODS.items()),
    *(_case("bfloat16", METHODS[name], f"llama {name}") for name in ("awq", "fp8 blocks")),
    *(_mixture(name) for name in ("gptq", "fp8 blocks", "int8 compressed")),
    *(
        _case(f"{name} at load", method, settings={"quantization": name})
        for name, method in AT_LOAD.items()
    ),
]

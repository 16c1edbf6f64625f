"""Quantized checkpoints, packed here by hand from the formats' descriptions, and quantization at
load. The reference is transformers with the dequantized weights put into the model.

Both compute with the same numbers, so that differences are those of float32 sums.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from parity.cases import ParityCase
from parity.random_models import make_random_model
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
Quantize = Callable[[torch.Tensor], tuple[torch.Tensor, Tensors]]
"""A weight [N, K] to its dequantized numbers, and the tensors of the checkpoint by suffix."""

GROUP = 32
BLOCK = 128
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def words(
    numbers: torch.Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))
) -> torch.Tensor:
    """Numbers 0 to 15, eight to an int32 along `dim`; `order[i]` is the place of nibble i."""
    eights = numbers.to(torch.int64).unflatten(dim, (-1, 8))
    total = sum(eights.select(dim + 1, place) << 4 * i for i, place in enumerate(order))
    assert isinstance(total, torch.Tensor)
    return (total - (total >> 31 << 32)).to(torch.int32).contiguous()


def int4_groups(
    weight: torch.Tensor, group: torch.Tensor, lowest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers 0 to 15 [K, N], zero points and float16 scales [groups, N]; `group` of each row."""
    rows = weight.t()
    parts = [rows[group == index] for index in range(int(group.max()) + 1)]
    low = torch.stack([part.amin(0) for part in parts])
    high = torch.stack([part.amax(0) for part in parts])
    scales = ((high - low) / 15).to(torch.float16)
    zeros = (-low / scales.float()).round().clamp(lowest, 15)
    numbers = (rows / scales[group].float() + zeros[group]).round().clamp(0, 15)
    return numbers, zeros, scales


def dequantized(
    numbers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group: torch.Tensor
) -> torch.Tensor:
    return ((numbers - zeros[group]) * scales[group].float()).t().contiguous()


def gptq(
    weight: torch.Tensor, *, group_size: int = GROUP, offset: int = 1, order: bool = False
) -> tuple[torch.Tensor, Tensors]:
    in_dim = weight.shape[1]
    group = torch.arange(in_dim) // (in_dim if group_size == -1 else group_size)
    if order:
        group = group[torch.randperm(in_dim, generator=torch.Generator().manual_seed(in_dim))]
    numbers, zeros, scales = int4_groups(weight, group, lowest=offset)
    return dequantized(numbers, zeros, scales, group), {
        "qweight": words(numbers, 0),
        "qzeros": words(zeros - offset, 1),
        "scales": scales,
        "g_idx": group.to(torch.int32),
    }


def gptq_with_bias(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    numbers, tensors = gptq(weight)
    return numbers, {**tensors, "bias": torch.zeros(weight.shape[0], dtype=torch.float16)}


def awq(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    group = torch.arange(weight.shape[1]) // GROUP
    numbers, zeros, scales = int4_groups(weight, group, lowest=0)
    return dequantized(numbers, zeros, scales, group), {
        "qweight": words(numbers, 1, AWQ_COLUMNS),
        "qzeros": words(zeros, 1, AWQ_COLUMNS),
        "scales": scales,
    }


def pack_quantized(
    weight: torch.Tensor, *, symmetric: bool = True, order: bool = False
) -> tuple[torch.Tensor, Tensors]:
    in_dim = weight.shape[1]
    group = torch.arange(in_dim) // GROUP
    if order:
        group = group[torch.randperm(in_dim, generator=torch.Generator().manual_seed(in_dim))]
    numbers, zeros, scales = int4_groups(weight, group, lowest=0)
    if symmetric:
        greatest = torch.stack([weight.t()[group == g].abs().amax(0) for g in group.unique()])
        scales, zeros = (greatest / 7.5).to(torch.float16), torch.full_like(zeros, 8)
        numbers = (weight.t() / scales[group].float() + 8).round().clamp(0, 15)
    found = {
        "weight_packed": words(numbers.t(), 1),
        "weight_scale": scales.t().contiguous(),
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
    if not symmetric:
        found["weight_zero_point"] = words(zeros.t(), 0)
    if order:
        found["weight_g_idx"] = group.to(torch.int32)
    return dequantized(numbers, zeros, scales, group), found


def float8(
    weight: torch.Tensor,
    *,
    by: str,
    suffix: str = "weight_scale",
    inputs: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, Tensors]:
    """`by`: tensor, row or block; `inputs`: the name of the scale of activations."""
    out_dim, in_dim = weight.shape
    sizes = {"tensor": (out_dim, in_dim), "row": (1, in_dim), "block": (BLOCK, BLOCK)}[by]
    scale = torch.stack(
        [
            torch.stack([part.abs().amax() / 448 for part in band.split(sizes[1], 1)])
            for band in weight.split(sizes[0])
        ]
    ).to(dtype)
    rows, columns = torch.arange(out_dim) // sizes[0], torch.arange(in_dim) // sizes[1]
    whole = scale.float()[rows][:, columns]
    stored = (weight / whole).clamp(-448, 448).to(torch.float8_e4m3fn)
    found = {"weight": stored, suffix: scale.reshape(()) if by == "tensor" else scale}
    if inputs is not None:
        found[inputs] = torch.tensor([0.02])
    return stored.float() * whole, found


def e2m1_bytes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest e2m1 numbers, and their codes two to a byte."""
    code = (values.abs()[..., None] - E2M1).abs().argmin(-1)
    numbers = E2M1[code].copysign(values)
    nibbles = code + 8 * (values < 0)
    return numbers, (nibbles[:, 0::2] + 16 * nibbles[:, 1::2]).to(torch.uint8)


def nvfp4(weight: torch.Tensor, *, compressed: bool) -> tuple[torch.Tensor, Tensors]:
    scale_2 = weight.abs().amax() / (6 * 448)
    # A power of 2, so that its inverse is exact.
    scale_2 = torch.exp2(scale_2.log2().ceil())
    scale = (weight.unflatten(1, (-1, 16)).abs().amax(2) / 6 / scale_2).to(torch.float8_e4m3fn)
    whole = (scale.float() * scale_2).repeat_interleave(16, 1)
    numbers, packed = e2m1_bytes(weight / whole)
    if compressed:
        found = {
            "weight_packed": packed,
            "weight_global_scale": (1 / scale_2)[None],
            "input_global_scale": torch.tensor([30.0]),
        }
    else:
        found = {"weight": packed, "weight_scale_2": scale_2, "input_scale": torch.tensor(0.03)}
    return numbers * whole, {**found, "weight_scale": scale}


def mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    exponent = (weight.unflatten(1, (-1, 32)).abs().amax(2) / 6).log2().ceil()
    whole = torch.exp2(exponent).repeat_interleave(32, 1)
    numbers, packed = e2m1_bytes(weight / whole)
    return numbers * whole, {
        "weight_packed": packed,
        "weight_scale": (exponent + 127).to(torch.uint8),
    }


def int8_at_load(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale, {"weight": weight}


def float8_at_load(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    return float8(weight, by="row")[0], {"weight": weight}


def blocks_at_load(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, Tensors]:
    """By the gguf package."""
    name = gguf.GGMLQuantizationType[kind]
    stored = gguf.quants.quantize(weight.numpy(), name)
    return torch.from_numpy(gguf.quants.dequantize(stored, name)), {"weight": weight}


@dataclass(frozen=True, kw_only=True)
class Method:
    """How linear layers are quantized, and what config.json says of it."""

    quantize: Quantize
    config: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ("lm_head",)
    own_file: Mapping[str, Any] = field(default_factory=dict)

    def write(self, model: transformers.PreTrainedModel, folder: Path) -> Path:
        """Save the quantized checkpoint; afterwards the model has the dequantized weights."""
        model.save_pretrained(folder)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and not any(s in name for s in self.skipped):
                numbers, tensors = self.quantize(state.pop(f"{name}.weight").float())
                module.weight.data = numbers.to(module.weight.dtype)
                state |= {f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()}
        config = json.loads((folder / "config.json").read_text())
        if self.config:
            config["quantization_config"] = self.config
        (folder / "config.json").write_text(json.dumps(config))
        if self.own_file:
            (folder / "hf_quant_config.json").write_text(json.dumps(self.own_file))
        save_file(state, folder / "model.safetensors")
        return folder


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
    return Method(quantize=quantize, config=config, skipped=skipped)


_E4M3 = {"num_bits": 8, "type": "float"}
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

AT_LOAD: Mapping[str, Method] = {
    "int8": Method(quantize=int8_at_load),
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
        **fields,
    )


CASES = [
    *(_case(name, method) for name, method in METHODS.items()),
    *(_case("bfloat16", METHODS[name], f"llama {name}") for name in ("awq", "fp8 blocks")),
    *(
        _case(f"{name} at load", method, settings={"quantization": name})
        for name, method in AT_LOAD.items()
    ),
]

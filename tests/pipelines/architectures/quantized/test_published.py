"""`quantization_config` as published checkpoints have it, read with the model it belongs to."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.quantized.float8 import (
    BLOCKWISE,
    PER_BLOCK,
    PER_TOKEN,
    ROWWISE,
    STATIC_INPUT,
    TENSOR,
    Float8Config,
    Float8Encoding,
    Float8InputScaleSpec,
    Float8ScaleGranularity,
    Float8ScaleOrigin,
)
from quire.pipelines.architectures.quantized.fp4 import COMPRESSED_NVFP4, MXFP4, NVFP4
from quire.pipelines.architectures.quantized.gptq_awq import (
    AWQEncoding,
    GPTQEncoding,
    PackQuantizedEncoding,
)
from quire.pipelines.architectures.quantized.int8 import W8A8Encoding

DECODER = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], **DECODER}
MIXTURE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    **DECODER,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
}
NEOX = {
    "architectures": ["GPTNeoXForCausalLM"],
    **DECODER,
    "num_key_value_heads": 4,
    "layer_norm_eps": 1e-5,
    "rotary_pct": 0.25,
    "hidden_act": "gelu",
}
MISTRAL3 = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "text_config": {**DECODER, "model_type": "mistral"},
    "vision_config": {},
    "tie_word_embeddings": False,
}
UP = "model.layers.1.mlp.up_proj"
ARGS = {"actorder": None, "block_structure": None, "dynamic": False, "group_size": None}
E4M3 = {**ARGS, "num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
INT4 = {**E4M3, "num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
FP4 = {**E4M3, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}
INT8 = {**E4M3, "type": "int", "strategy": "channel", "observer": "mse"}
TOKENS = {**E4M3, "strategy": "token", "dynamic": True, "observer": None}
MODELOPT = {"quant_method": "modelopt", "producer": {"name": "modelopt", "version": "0.35.0"}}
BLOCKS = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def compressed(file_format: str, weights: object, inputs: object, **fields: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "config_groups": {"group_0": {**group, "output_activations": None}},
        "format": file_format,
        "global_compression_ratio": 1.5,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        **fields,
    }


def float8(weights: Any, inputs: Any, *names: str, **fields: Any) -> Float8Encoding:
    names = names or ("weight_scale",)
    return Float8Encoding(config=Float8Config(weights, inputs), scale_names=names, **fields)


AUTO_NAMES = {"input_scale_names": ("input_scale", "activation_scale")}
LIMITED = Float8InputScaleSpec(
    Float8ScaleGranularity.COLWISE, Float8ScaleOrigin.DYNAMIC, activation_scale_ub=1200.0
)
ROWS: dict[str, tuple[dict[str, Any], Encoding]] = {
    "TheBloke GPTQ": (
        {
            "bits": 4,
            "group_size": 128,
            "damp_percent": 0.1,
            "desc_act": True,
            "sym": True,
            "true_sequential": True,
            "model_name_or_path": None,
            "model_file_base_name": "model",
            "quant_method": "gptq",
        },
        GPTQEncoding(group_size=128, has_act_order=True),
    ),
    "Qwen2.5 GPTQ-Int4": (
        {
            "batch_size": 1,
            "bits": 4,
            "block_name_to_quantize": None,
            "dataset": None,
            "desc_act": False,
            "exllama_config": {"version": 1},
            "group_size": 128,
            "modules_in_block_to_quantize": None,
            "quant_method": "gptq",
            "sym": True,
            "use_exllama": True,
        },
        GPTQEncoding(group_size=128),
    ),
    "GPTQModel": (
        {
            "bits": 4,
            "checkpoint_format": "gptq",
            "desc_act": False,
            "dynamic": None,
            "format": "gptq",
            "group_size": 128,
            "lm_head": False,
            "meta": {"quantizer": ["gptqmodel:7.7.0"]},
            "method": "gptq",
            "pack_dtype": "int32",
            "quant_method": "gptq",
            "sym": True,
        },
        GPTQEncoding(group_size=128),
    ),
    "Qwen2.5 AWQ": (
        {
            "bits": 4,
            "group_size": 128,
            "modules_to_not_convert": None,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        },
        AWQEncoding(group_size=128),
    ),
    "transformers 5 AWQ": (
        {
            "backend": "auto",
            "bits": 4,
            "desc_act": False,
            "format": "gemm",
            "group_size": 128,
            "quant_method": "awq",
            "sym": True,
            "version": "gemm",
            "zero_point": True,
        },
        AWQEncoding(group_size=128),
    ),
    "AutoFP8": (
        {"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"},
        float8(TENSOR, STATIC_INPUT, "weight_scale", "weight_scale_inv", **AUTO_NAMES),
    ),
    "Ministral 3": (
        {
            "activation_scheme": "static",
            "dequantize": False,
            "modules_to_not_convert": ["model.vision_tower", "lm_head"],
            "quant_method": "fp8",
            "weight_block_size": None,
        },
        float8(TENSOR, STATIC_INPUT, "weight_scale", "weight_scale_inv", **AUTO_NAMES),
    ),
    "RedHatAI quantized.w8a8": (
        compressed(
            "int-quantized",
            INT8,
            {**INT8, "strategy": "token", "dynamic": True, "observer": "memoryless"},
            quantization_status="frozen",
        ),
        W8A8Encoding(),
    ),
    "Qwen3 FP8": (BLOCKS, float8(BLOCKWISE, PER_BLOCK, "weight_scale_inv")),
    "DeepSeek-V3.1": (
        {**BLOCKS, "scale_fmt": "ue8m0"},
        float8(BLOCKWISE, PER_BLOCK, "weight_scale_inv"),
    ),
    "Llama 3.1 405B FP8": (
        {
            "activation_scale_ub": 1200.0,
            "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.up_proj"],
            "quant_method": "fbgemm_fp8",
        },
        float8(ROWWISE, LIMITED),
    ),
    "RedHatAI FP8": (
        compressed("naive-quantized", E4M3, E4M3, quantization_status="frozen"),
        float8(TENSOR, STATIC_INPUT),
    ),
    "RedHatAI FP8-dynamic": (
        compressed("float-quantized", {**E4M3, "strategy": "channel"}, TOKENS),
        float8(ROWWISE, PER_TOKEN),
    ),
    "RedHatAI FP8-block": (
        compressed(
            "float-quantized",
            {**E4M3, "strategy": "block", "block_structure": [128, 128]},
            {**E4M3, "strategy": "group", "group_size": 128, "dynamic": True},
        ),
        float8(BLOCKWISE, PER_BLOCK),
    ),
    "RedHatAI w4a16": (
        compressed("pack-quantized", {**INT4, "actorder": "weight"}, None, sparsity_config={}),
        PackQuantizedEncoding(group_size=128),
    ),
    "RedHatAI w4a16 by activations": (
        compressed("pack-quantized", {**INT4, "actorder": "group"}, None),
        PackQuantizedEncoding(group_size=128, has_act_order=True),
    ),
    "llm-compressor AWQ": (
        compressed("pack-quantized", {**INT4, "symmetric": False}, None, transform_config={}),
        PackQuantizedEncoding(group_size=128, is_symmetric=False),
    ),
    "RedHatAI NVFP4": (
        compressed("nvfp4-pack-quantized", FP4, {**FP4, "dynamic": "local"}),
        COMPRESSED_NVFP4,
    ),
    "llm-compressor MXFP4": (
        compressed("mxfp4-pack-quantized", {**FP4, "strategy": "group", "group_size": 32}, None),
        MXFP4,
    ),
    "nvidia FP8": (
        {
            **MODELOPT,
            "ignore": ["lm_head"],
            "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
            "quant_algo": "FP8",
        },
        float8(TENSOR, STATIC_INPUT),
    ),
    "nvidia NVFP4": (
        {**MODELOPT, "ignore": ["lm_head", "model.layers.0.self_attn*"], "quant_algo": "NVFP4"},
        NVFP4,
    ),
}


ROWS["ModelOpt NVFP4 weights"] = (
    {**MODELOPT, "ignore": ["lm_head"], "quant_algo": "W4A16_NVFP4"},
    NVFP4,
)


def read(folder: Path, model: dict[str, Any], quantization: dict[str, Any]) -> set[str]:
    """The linear layers of two dimensions that are stored as plain numbers."""
    text = json.dumps({**model, "quantization_config": quantization})
    (folder / "config.json").write_text(text)
    spec = load_model_spec(folder)
    return {
        name.removesuffix(".weight")
        for name, tensor in spec.tensors().items()
        if len(tensor.shape) == 2 and "F32" in tensor.dtypes and name.endswith(".weight")
    }


@pytest.mark.parametrize("name", ROWS)
def test_published_configurations_mean_what_their_files_hold(name: str, tmp_path: Path) -> None:
    quantization, encoding = ROWS[name]

    dense = read(tmp_path, LLAMA, quantization)

    quant = load_model_spec(tmp_path).quant
    assert quant.encoding_of(UP) == encoding
    assert dense >= {"model.embed_tokens", "lm_head"}
    others = dense - {"model.embed_tokens", "lm_head"}
    listed = "model.layers.0.mlp.up" if "405B" in name else "model.layers.0.self_attn"
    assert all(other.startswith(listed) for other in others)
    assert bool(others) is (name in ("Llama 3.1 405B FP8", "nvidia NVFP4"))


@pytest.mark.parametrize(
    "quantization",
    [
        {**BLOCKS, "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]},
        compressed("pack-quantized", INT4, None, ignore=["re:.*lm_head", r"re:.*mlp.gate$"]),
        {**ROWS["GPTQModel"][0], "dynamic": {r"-:.*\.mlp\.gate$": {}}},
        {**ROWS["Qwen2.5 AWQ"][0], "dynamic": {r"-:.*\.mlp\.gate$": {}}},
        {**ROWS["Qwen2.5 AWQ"][0], "modules_to_not_convert": ["gate"]},
    ],
)
def test_experts_are_quantized_and_routers_are_not(
    quantization: dict[str, Any], tmp_path: Path
) -> None:
    routers = {f"model.layers.{index}.mlp.gate" for index in range(2)}

    assert read(tmp_path, MIXTURE, quantization) == {"model.embed_tokens", "lm_head", *routers}


@pytest.mark.parametrize("name", ["TheBloke GPTQ", "Qwen2.5 AWQ", "AutoFP8", "Llama 3.1 405B FP8"])
def test_a_head_of_another_name_is_not_quantized_either(name: str, tmp_path: Path) -> None:
    assert "embed_out" in read(tmp_path, NEOX, ROWS[name][0])


@pytest.mark.parametrize("prefix", ["language_model.model", "model.language_model"])
def test_lists_may_have_the_names_of_any_transformers(prefix: str, tmp_path: Path) -> None:
    name = f"{prefix}.layers.0.mlp.down_proj"
    quantization = compressed("pack-quantized", INT4, None, ignore=["lm_head", name])

    assert read(tmp_path, MISTRAL3, quantization) == {
        "language_model.model.embed_tokens",
        "language_model.lm_head",
        "language_model.model.layers.0.mlp.down_proj",
    }

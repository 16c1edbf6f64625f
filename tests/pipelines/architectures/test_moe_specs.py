"""Mixtures of experts: published configurations, what a token meets of them, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quire.config.errors import ModelError
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.moe_parts import (
    MoESpec,
    Mxfp4Experts,
    StackedExperts,
    expert_notes,
)
from quire.pipelines.architectures.parts import AttentionSpec, MLPSpec
from quire.pipelines.architectures.quant_config import UNQUANTIZED
from quire.pipelines.architectures.spec import ModelSpec

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    **SIZES,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "rope_theta": 1e6,
}
# As openai/gpt-oss-20b has it: no dtype, the rotation in two keys.
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    **SIZES,
    "attention_bias": True,
    "experts_per_token": 4,
    "initial_context_length": 4096,
    "num_experts_per_tok": 4,
    "num_local_experts": 32,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "rope_theta": 150000,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
LLAMA4_TEXT = {
    **SIZES,
    "model_type": "llama4_text",
    "attention_chunk_size": 1024,
    "attn_temperature_tuning": 4,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 64,
    "no_rope_layers": [],
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "torch_dtype": "bfloat16",
}
LLAMA4 = {"architectures": ["Llama4ForConditionalGeneration"], "text_config": LLAMA4_TEXT}
QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"],
    **SIZES,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [3],
    "max_window_layers": 48,
    "norm_topk_prob": True,
}
QWEN2 = {
    **QWEN3,
    "architectures": ["Qwen2MoeForCausalLM"],
    "shared_expert_intermediate_size": 40,
    "use_sliding_window": True,
    "sliding_window": 9,
    "max_window_layers": 3,
}


def read(folder: Path, config: Mapping[str, Any], **changes: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return load_model_spec(folder)


def attention_of(spec: ModelSpec, layer: int) -> AttentionSpec:
    attention = spec.layers[layer].attention
    assert isinstance(attention, AttentionSpec)
    return attention


def mixture_of(spec: ModelSpec, layer: int) -> MoESpec:
    mixture = spec.layers[layer].mlp
    assert isinstance(mixture, MoESpec)
    return mixture


def test_a_token_meets_only_its_experts(tmp_path: Path) -> None:
    spec = read(tmp_path, MIXTRAL)
    one, experts = 3 * 32 * 48, mixture_of(spec, 0).experts
    rest = spec.num_parameters - 4 * 6 * one

    assert experts.num_parameters == 6 * one
    assert experts.num_active_parameters == 2 * one
    assert spec.flops_per_token(0) == 2 * (rest - 61 * 32 + 4 * 2 * one)
    assert spec.weight_bytes("bfloat16") == 2 * spec.num_parameters
    assert spec.streamed_weight_bytes("bfloat16", "cpu") == 2 * (rest - 61 * 32 + 4 * 2 * one)


def test_gpt_oss_as_it_is_published(tmp_path: Path) -> None:
    spec = read(tmp_path, GPT_OSS, intermediate_size=64, quantization_config=MXFP4)
    experts, rope = mixture_of(spec, 1).experts, attention_of(spec, 1).rope

    assert spec.checkpoint_dtype == "bfloat16"
    assert [layer.window for layer in spec.kv_layers] == [128, None, 128, None]
    assert (rope.kind, rope.truncate, rope.theta, rope.factor) == ("yarn", False, 150000, 32)
    assert isinstance(experts, Mxfp4Experts)
    shapes = {name: tensor.shape for name, tensor in spec.tensors().items()}
    assert shapes["model.layers.1.mlp.experts.gate_up_proj_blocks"] == (32, 128, 1, 16)
    assert shapes["model.layers.1.mlp.experts.down_proj_scales"] == (32, 32, 2)
    numbers, rows, biases = 3 * 32 * 64, 128 + 32, 128 + 32
    held = experts.device_bytes(spec.quant, "bfloat16", "cuda")
    assert held == 32 * (numbers + 4 * rows + 2 * biases)
    assert experts.device_bytes(spec.quant, "bfloat16", "cpu") == 32 * 2 * (numbers + biases)


def test_gpt_oss_of_plain_numbers(tmp_path: Path) -> None:
    spec = read(tmp_path, GPT_OSS, dtype="float32")

    assert spec.checkpoint_dtype == "float32"
    assert type(mixture_of(spec, 0).experts) is StackedExperts


def test_llama4_as_it_is_published(tmp_path: Path) -> None:
    spec = read(tmp_path, LLAMA4)
    scale = attention_of(spec, 3).query_scale

    assert [layer.attention.rope.kind for layer in spec.layers] == ["default"] * 3 + ["none"]
    assert [layer.attention.chunk_size for layer in spec.layers] == [1024, 1024, 1024, None]
    assert [type(layer.mlp) for layer in spec.layers] == [MLPSpec, MoESpec] * 2
    assert scale is not None and (scale.beta, scale.length, scale.offset) == (0.1, 8192, 1)
    assert attention_of(spec, 0).query_scale is None
    assert spec.checkpoint_dtype == "bfloat16"
    assert spec.ignores("vision_model.patch_embedding.linear.weight")
    assert not any("norm" in name for name in spec.tensors() if "self_attn" in name)


def test_layers_of_qwen_with_experts(tmp_path: Path) -> None:
    for config in (QWEN3, QWEN2):
        spec = read(tmp_path, config)
        assert [type(layer.mlp) for layer in spec.layers] == [MLPSpec, MoESpec, MLPSpec, MLPSpec]
    assert [layer.window for layer in spec.kv_layers] == [9, None, 9, None]
    assert mixture_of(spec, 1).shared_gate is not None


def test_the_log_says_what_a_gpu_has_to_dequantize(tmp_path: Path) -> None:
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True, "desc_act": False}
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    for method, notes in ((gptq, ("experts in gptq are dequantized at load",)), (fp8, ())):
        spec = read(tmp_path, MIXTRAL, quantization_config=method)
        assert expert_notes(spec, spec.quant, "cuda") == notes
        assert expert_notes(spec, spec.quant, "cpu") == ()
    assert expert_notes(read(tmp_path, MIXTRAL), UNQUANTIZED, "cuda") == ()


TEXT = "config.json: text_config: "
REFUSED: dict[str, tuple[Mapping[str, Any], dict[str, Any], str]] = {
    "activation": (MIXTRAL, {"hidden_act": "gelu"}, "hidden_act: expected silu"),
    "experts": (MIXTRAL, {"num_local_experts": 513}, "num_local_experts: expected at most 512"),
    "no experts": (MIXTRAL, {"num_local_experts": None}, "num_local_experts: expected an integer"),
    "choices": (MIXTRAL, {"num_experts_per_tok": 7}, "expected at most the 6 experts, found 7"),
    "sparse step": (QWEN3, {"decoder_sparse_step": 0}, "decoder_sparse_step: expected an integer"),
    "dense layers": (QWEN3, {"mlp_only_layers": "1"}, "mlp_only_layers: expected a list of int"),
    "shared": (QWEN2, {"shared_expert_intermediate_size": None}, "shared_expert_inter"),
    "no rotation": (GPT_OSS, {"rope_scaling": None}, "rope_scaling: expected a JSON object"),
    "no window": (GPT_OSS, {"sliding_window": None}, "sliding_window: expected an integer"),
    "blocks": (GPT_OSS, {"quantization_config": MXFP4}, "intermediate_size: .* multiple of 32"),
    "limit": (GPT_OSS, {"swiglu_limit": 0}, "swiglu_limit: expected a number greater than 0"),
    "short list": (LLAMA4, {"no_rope_layers": [1, 0]}, TEXT + "no_rope_layers: expected an entry"),
    "no chunks": (LLAMA4, {"attention_chunk_size": None}, TEXT + "attention_chunk_size: expected"),
    "layer types": (LLAMA4, {"layer_types": ["sliding_attention"] * 4}, TEXT + "layer_types: "),
    "tuning": (
        LLAMA4,
        {"attn_temperature_tuning": "x"},
        TEXT + "attn_temperature_tuning: expected",
    ),
    "norm after yarn": (
        LLAMA4,
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        TEXT + "use_qk_norm: expected false with rope_type yarn",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_refused_by_key(name: str, tmp_path: Path) -> None:
    config, changes, message = REFUSED[name]
    if "text_config" in config:
        changes = {"text_config": {**config["text_config"], **changes}}

    with pytest.raises(ModelError, match=message):
        read(tmp_path, config, **changes)

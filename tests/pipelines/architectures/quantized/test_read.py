"""`read_quant_config`: what is accepted, with which tensors, and every refusal."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire.config.errors import ModelError
from quire.pipelines.architectures import encodings
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig
from quire.pipelines.architectures.quantized import int8
from quire.pipelines.architectures.quantized.float8 import (
    PER_BLOCK,
    PER_TOKEN,
    ROWWISE,
    STATIC_INPUT,
    TENSOR,
    Float8Config,
    Float8Encoding,
)
from quire.pipelines.architectures.quantized.fp4 import NVFP4
from quire.pipelines.architectures.quantized.gptq_awq import GPTQEncoding
from quire.pipelines.architectures.quantized.int8 import Int8Encoding, W8A8Encoding
from quire.pipelines.architectures.quantized.read import read_quant_config

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCKS = {**FP8, "weight_block_size": [128, 128]}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
E4M3 = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "tensor"}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
TOKENS = {**E4M3, "strategy": "token", "dynamic": True}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
INT8_TOKENS = {**INT8, "strategy": "token", "dynamic": True}


def compressed(
    file_format: str, weights: dict[str, Any], inputs: dict[str, Any] | None, **fields: Any
) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    group |= fields.pop("group", {})
    values = {"quant_method": "compressed-tensors", "format": file_format}
    return {**values, "config_groups": {"group_0": group}, **fields}


def float_quantized(**fields: Any) -> dict[str, Any]:
    return compressed("float-quantized", E4M3, E4M3, **fields)


def read(values: object, folder: Path = Path("nowhere")) -> QuantConfig:
    return read_quant_config(ConfigFile("config.json", {"quantization_config": values}), folder)


def float8(values: dict[str, Any]) -> Float8Config:
    encoding = read(values).encoding
    assert isinstance(encoding, Float8Encoding)
    return encoding.config


def test_without_a_section_nothing_is_quantized(tmp_path: Path) -> None:
    assert read_quant_config(ConfigFile("config.json", {}), tmp_path) == UNQUANTIZED


def test_stacked_experts_in_mxfp4_are_the_architectures_own() -> None:
    assert read({"quant_method": "mxfp4"}) == UNQUANTIZED


def test_gptq_options_say_what_is_stored() -> None:
    assert read(GPTQ) == QuantConfig(GPTQEncoding(group_size=128), ("lm_head",))
    options = {**GPTQ, "group_size": -1, "desc_act": True, "lm_head": True, "sym": True}
    quant = read({**options, "checkpoint_format": "gptq_v2", "dynamic": {}, "meta": {"a": 1}})

    expected = GPTQEncoding(group_size=-1, zero_offset=0, has_act_order=True)
    assert quant == QuantConfig(expected)
    tensors = expected.tensors(16, 40)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "qweight": (5, 16),
        "qzeros": (1, 2),
        "scales": (1, 16),
        "g_idx": (40,),
        "bias": (16,),
    }
    assert [name for name, tensor in tensors.items() if tensor.is_optional] == ["bias"]


def test_gptq_may_name_the_layers_or_the_exceptions() -> None:
    listed = read({**GPTQ, "modules_in_block_to_quantize": [["attn.q_proj"], ["mlp.up_proj"]]})
    excepted = read({**GPTQ, "dynamic": {r"-:.*\.mlp\.gate$": {}}})

    names = ("layers.0.attn.q_proj", "layers.0.flattn.q_proj", "layers.0.mlp.gate", "lm_head")
    assert [listed.skips(name) for name in names] == [False, True, True, True]
    assert [excepted.skips(name) for name in names] == [False, False, True, True]


@pytest.mark.parametrize(
    ("values", "config"),
    [
        ({**FP8, "activation_scheme": "static"}, Float8Config(TENSOR, STATIC_INPUT)),
        (FP8, Float8Config(TENSOR, PER_TOKEN)),
        (compressed("float-quantized", E4M3, None), Float8Config(TENSOR, None)),
        (float_quantized(), Float8Config(TENSOR, STATIC_INPUT)),
        (
            compressed("float-quantized", {**E4M3, "strategy": "channel"}, TOKENS),
            Float8Config(ROWWISE, PER_TOKEN),
        ),
    ],
)
def test_float8_schemes(values: dict[str, Any], config: Float8Config) -> None:
    assert float8(values) == config


@pytest.mark.parametrize(
    ("values", "encoding", "scale"),
    [
        (compressed("int-quantized", INT8, INT8_TOKENS), W8A8Encoding(), (256, 1)),
        (compressed("int-quantized", INT8, None), Int8Encoding(), (256, 1)),
        (
            compressed("naive-quantized", {**INT8, "strategy": "tensor"}, INT8_TOKENS),
            W8A8Encoding(is_tensor=True),
            (),
        ),
    ],
)
def test_int8_schemes(
    values: dict[str, Any], encoding: Int8Encoding, scale: tuple[int, ...]
) -> None:
    found = read(values).encoding

    assert found == encoding
    tensors = found.tensors(256, 512)
    assert tensors["weight"].dtypes == ("I8",)
    assert tensors["weight_scale"].shape == scale
    assert found.device_bytes(256, 512, "bfloat16", "cuda") == 256 * 512 + 4 * 256


@pytest.mark.parametrize("is_built", [True, False])
def test_a_cpu_holds_int8_as_its_kernels_compute(
    is_built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "library", lambda: object() if is_built else None)
    weight_only = Int8Encoding().device_bytes(256, 512, "bfloat16", "cpu")
    w8a8 = W8A8Encoding().device_bytes(256, 512, "bfloat16", "cpu")

    packed = 256 * 512 + 4 * 256
    assert (weight_only, w8a8) == (
        (packed, packed) if is_built else (256 * 512 * 2, 4 * 256 * 512 + 4 * 256)
    )


def test_float8_blocks_are_the_same_by_both_names() -> None:
    weights = {**E4M3, "strategy": "block", "block_structure": [128, 128]}
    inputs = {**E4M3, "strategy": "group", "group_size": 128, "dynamic": True}
    other = compressed("float-quantized", weights, inputs)

    assert float8(BLOCKS) == float8(other)
    assert float8(BLOCKS).input_scale == PER_BLOCK
    assert read(BLOCKS).encoding.tensors(200, 300)["weight_scale_inv"].shape == (2, 3)
    assert read(other).encoding.tensors(200, 300)["weight_scale"].shape == (2, 3)


def test_fbgemm_limits_the_scales_of_activations() -> None:
    config = float8({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0})

    assert config.input_scale is not None
    assert config.input_scale.activation_scale_ub == 1200.0


def test_modelopt_scales_of_the_cache_are_left_and_it_is_said() -> None:
    quant = read({**MODELOPT, "ignore": ["lm_head"], "kv_cache_scheme": {"num_bits": 8}})

    assert quant.encoding == NVFP4
    assert "a.k_proj.k_scale".endswith(quant.ignored_suffixes)
    assert "KV cache" in quant.notes[0]


def test_modelopt_has_a_file_of_its_own(tmp_path: Path) -> None:
    values = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(values))

    quant = read_quant_config(ConfigFile("config.json", {}), tmp_path)

    assert quant.skipped == ("lm_head",)
    assert isinstance(quant.encoding, Float8Encoding)
    assert quant.encoding.config == Float8Config(TENSOR, STATIC_INPUT)


REFUSED: list[tuple[object, str]] = [
    ("gptq", "quantization_config: expected a JSON object"),
    ({"bits": 4}, "quant_method: expected a string, found nothing"),
    ({"quant_method": "bitsandbytes"}, 'quant_method: expected one of gptq, .*"bitsandbytes"'),
    ({**GPTQ, "bits": 3}, "quantization_config: bits: expected 4, found 3"),
    ({**GPTQ, "bits": 8}, "bits: expected 4, found 8"),
    ({**GPTQ, "group_size": 256}, "group_size: expected one of 32, 64, 128, -1, found 256"),
    ({**GPTQ, "checkpoint_format": "marlin"}, 'expected gptq or gptq_v2, found "marlin"'),
    (
        {**GPTQ, "checkpoint_format": "gptq", "format": "gptq_v2"},
        'format: expected gptq, as another key says, found "gptq_v2"',
    ),
    ({**GPTQ, "activation": {"mode": "w4afp8"}}, "activation: expected nothing"),
    ({**GPTQ, "is_marlin_format": True}, "is_marlin_format: expected false"),
    ({**GPTQ, "dynamic": {"+:.*": {"bits": 8}}}, "dynamic: expected only keys that begin with -:"),
    ({**GPTQ, "dynamic": {"-:(": {}}}, "dynamic: expected valid regular expressions"),
    ({**GPTQ, "rotation": "hadamard"}, "rotation: expected nothing"),
    ({**GPTQ, "modules_in_block_to_quantize": ["a"]}, "expected a list of lists of strings"),
    ({**GPTQ, "pack_dtype": "int64"}, "pack_dtype: expected int32"),
    ({**AWQ, "bits": 3}, "bits: expected 4, found 3"),
    ({**AWQ, "version": "gemv"}, 'version: expected gemm, found "gemv"'),
    ({**AWQ, "format": "gemv_fast"}, 'format: expected gemm, found "gemv_fast"'),
    ({**AWQ, "checkpoint_format": "marlin"}, "checkpoint_format: expected gemm"),
    ({**AWQ, "dynamic": {".*up_proj": {"bits": 8}}}, "dynamic: expected only keys that begin"),
    ({**AWQ, "zero_point": False}, "zero_point: expected true, found false"),
    ({**AWQ, "group_size": 16}, "group_size: expected one of"),
    ({**AWQ, "modules_to_not_convert": "lm_head"}, "modules_to_not_convert: expected a list"),
    ({**FP8, "fmt": "e5m2"}, "fmt: expected e4m3"),
    ({**FP8, "scale_fmt": "e5m3"}, "scale_fmt: expected float or ue8m0"),
    ({**FP8, "activation_scheme": "none"}, "activation_scheme: expected static or dynamic"),
    ({**FP8, "expert_dtype": "fp4"}, "expert_dtype: expected fp8"),
    ({**FP8, "modules_to_convert": ["embed"]}, "modules_to_convert: expected nothing"),
    ({**FP8, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme: expected nothing"),
    ({**BLOCKS, "weight_block_size": [64, 128]}, r"weight_block_size: expected \[128, 128\]"),
    ({**BLOCKS, "activation_scheme": "static"}, "activation_scheme: expected dynamic"),
    ({**MODELOPT, "quant_algo": "W4A16_AWQ"}, "quant_algo: expected FP8, NVFP4 or W4A16_NVFP4"),
    ({**MODELOPT, "group_size": 32}, "group_size: expected 16"),
    (compressed("marlin-24", E4M3, None), "format: expected one of float-quantized"),
    (compressed("int-quantized", E4M3, None), "weights: type: expected int"),
    (compressed("int-quantized", {**INT8, "num_bits": 4}, None), "num_bits: expected 8, found 4"),
    (compressed("int-quantized", {**INT8, "symmetric": False}, None), "symmetric: expected true"),
    (
        compressed("int-quantized", {**INT8, "strategy": "group", "group_size": 128}, None),
        "weights: strategy: expected tensor or channel",
    ),
    (
        compressed("int-quantized", INT8, {**INT8_TOKENS, "dynamic": False}),
        "input_activations: dynamic: expected true",
    ),
    (
        compressed("int-quantized", INT8, {**INT8_TOKENS, "strategy": "tensor"}),
        "input_activations: strategy: expected token",
    ),
    (
        compressed("int-quantized", INT8, {**INT8_TOKENS, "symmetric": False}),
        "input_activations: symmetric: expected true",
    ),
    (
        compressed("int-quantized", INT8, {**INT8_TOKENS, "num_bits": 4}),
        "input_activations: num_bits: expected 8",
    ),
    (float_quantized(config_groups={}), "config_groups: expected one group"),
    (float_quantized(group={"targets": ["re:.*"]}), r'targets: expected \["Linear"\]'),
    (float_quantized(group={"output_activations": E4M3}), "output_activations: expected nothing"),
    (float_quantized(kv_cache_scheme=E4M3), "kv_cache_scheme: expected nothing"),
    (float_quantized(transform_config={"a": 1}), "transform_config: expected nothing"),
    (float_quantized(sparsity_config={"format": "sparse-24"}), "format: expected dense"),
    (float_quantized(quantization_status="initialized"), "quantization_status: expected compr"),
    (float_quantized(ignore=["re:("]), "ignore: expected valid regular expr"),
    (
        compressed("float-quantized", {**E4M3, "strategy": "group"}, None),
        "strategy: expected tensor, channel or block",
    ),
    (
        compressed("float-quantized", {**E4M3, "num_bits": 4}, None),
        "weights: num_bits: expected 8, found 4",
    ),
    (
        compressed("float-quantized", {**E4M3, "symmetric": False}, None),
        "symmetric: expected true",
    ),
    (
        compressed("float-quantized", E4M3, {**E4M3, "strategy": "token"}),
        "input_activations: strategy: expected tensor, static",
    ),
    (
        compressed("float-quantized", {**E4M3, "strategy": "block", "block_structure": [1]}, None),
        "block_structure: expected",
    ),
    (compressed("pack-quantized", {**INT4, "num_bits": 3}, None), "num_bits: expected 4, found 3"),
    (compressed("pack-quantized", {**INT4, "type": "float"}, None), "type: expected int"),
    (compressed("pack-quantized", INT4, TOKENS), "input_activations: expected null"),
    (compressed("pack-quantized", {**INT4, "group_size": 8}, None), "group_size: expected one"),
    (compressed("pack-quantized", {**INT4, "actorder": "x"}, None), "actorder: expected null"),
    (
        compressed("pack-quantized", {**INT4, "strategy": "tensor"}, None),
        "strategy: expected group or channel",
    ),
    (compressed("nvfp4-pack-quantized", INT4, None), "type: expected float"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(values: object, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        read(values)

    assert str(raised.value).startswith("config.json: ")


@pytest.mark.parametrize(
    ("values", "on_gpu", "on_cpu"),
    [
        # 4 bits, and for each group a zero point of 4 bits and a float16; on a CPU two float32.
        (GPTQ, 256 * 512 // 2 + 4 * 256 // 2 + 4 * 256 * 2, 256 * 512 // 2 + 4 * 256 * 8),
        (AWQ, 256 * 512 // 2 + 4 * 256 // 2 + 4 * 256 * 2, 256 * 512 // 2 + 4 * 256 * 8),
        (BLOCKS, 256 * 512 + 2 * 4 * 4, None),
        (MODELOPT, 256 * 512 // 2 + 256 * 32 + 4, None),
        # Activations stay as they are, for which there is no fp8 kernel.
        (compressed("float-quantized", E4M3, None), 256 * 512 * 2, None),
    ],
)
@pytest.mark.parametrize("is_built", [True, False])
def test_a_device_holds_what_it_computes_with(
    values: dict[str, Any],
    on_gpu: int,
    on_cpu: int | None,
    is_built: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encodings, "library", lambda: object() if is_built else None)
    encoding, plain = read(values).encoding, 256 * 512 * 2

    assert encoding.device_bytes(256, 512, "bfloat16", "cuda") == on_gpu
    found = encoding.device_bytes(256, 512, "bfloat16", "cpu")
    assert found == (on_cpu if is_built and on_cpu is not None else plain)


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        (GPTQ, (12, 128)),
        (GPTQ, (16, 100)),
        (AWQ, (16, 64)),
        (MODELOPT, (16, 24)),
        (
            compressed(
                "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 32}, None
            ),
            (4, 48),
        ),
    ],
)
def test_a_layer_of_an_impossible_size_is_an_error(
    values: dict[str, Any], sizes: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="columns|words"):
        read(values).encoding.tensors(*sizes)

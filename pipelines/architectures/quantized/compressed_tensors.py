"""Checkpoints of compressed-tensors, the format of llm-compressor. No torch.

https://github.com/vllm-project/compressed-tensors: `quantization_config.config_groups` describes
weights and activations; one group for all linear layers is supported.
"""

from collections.abc import Mapping

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quant_config import QuantConfig
from quire.pipelines.architectures.quantized.float8 import (
    BLOCK,
    BLOCKWISE,
    PER_BLOCK,
    PER_TOKEN,
    ROWWISE,
    STATIC_INPUT,
    TENSOR,
    Float8Config,
    Float8Encoding,
    Float8InputScaleSpec,
)
from quire.pipelines.architectures.quantized.fp4 import COMPRESSED_NVFP4, MXFP4
from quire.pipelines.architectures.quantized.gptq_awq import GROUP_SIZES, PackQuantizedEncoding
from quire.pipelines.architectures.quantized.int8 import Int8Encoding, W8A8Encoding
from quire.pipelines.architectures.quantized.names import names_in, refuse_keys

_FORMATS = (
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "pack-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
)


_FP4: Mapping[str, int | str] = {"num_bits": 4, "type": "float", "symmetric": True}


def read_compressed_tensors(section: ConfigFile) -> QuantConfig:
    """Of `quant_method` compressed-tensors.

    Activations of 4 bits are not quantized, those of int8 are everywhere and those of fp8 on a GPU,
    dynamic ones per token; those of a mixture's experts never are.

    Raises:
        ModelError: more than one group, or a scheme that is not supported.
    """
    refuse_keys(section, ("kv_cache_scheme", "transform_config"))
    if section.string("quantization_status", "compressed") not in ("compressed", "frozen"):
        raise section.wrong("quantization_status", "compressed")
    sparsity = section.section("sparsity_config")
    if sparsity.string("format", "dense") != "dense":
        raise sparsity.wrong("format", "dense")
    groups = section.section("config_groups")
    names = tuple(groups)
    if len(names) != 1:
        raise section.wrong("config_groups", "one group")
    group = groups.section(names[0])
    if group.strings("targets") != ("Linear",):
        raise group.wrong("targets", '["Linear"]')
    refuse_keys(group, ("output_activations",))
    key = "format"
    source = group if group.has(key) else section
    weights, inputs = group.section("weights"), group.section("input_activations")
    match source.string(key):
        case "int-quantized":
            encoding: Encoding = _int8(group, weights, inputs)
        case "naive-quantized" if weights.string("type", "int") == "int":
            encoding = _int8(group, weights, inputs)
        case "float-quantized" | "naive-quantized":
            encoding = _float8(group, weights, inputs)
        case "pack-quantized":
            if group.has("input_activations"):
                raise group.wrong("input_activations", "null")
            encoding = _packed(weights)
        case "nvfp4-pack-quantized":
            _check(weights, {**_FP4, "group_size": 16})
            encoding = COMPRESSED_NVFP4
        case "mxfp4-pack-quantized":
            _check(weights, {**_FP4, "group_size": 32})
            encoding = MXFP4
        case _:
            raise source.wrong(key, f"one of {', '.join(_FORMATS)}")
    return QuantConfig(encoding, names_in(section, "ignore"))


def _float8(group: ConfigFile, weights: ConfigFile, inputs: ConfigFile) -> Float8Encoding:
    _check(weights, {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False})
    match weights.string("strategy"):
        case "tensor":
            scale = TENSOR
        case "channel":
            scale = ROWWISE
        case "block":
            if weights.integers("block_structure") != (BLOCK, BLOCK):
                raise weights.wrong("block_structure", f"[{BLOCK}, {BLOCK}]")
            scale = BLOCKWISE
        case _:
            raise weights.wrong("strategy", "tensor, channel or block")
    if not group.has("input_activations"):
        return Float8Encoding(config=Float8Config(scale, None))
    _check(inputs, {"num_bits": 8, "type": "float", "symmetric": True})
    input_scale: Float8InputScaleSpec
    match inputs.string("strategy"), inputs.boolean("dynamic", False):
        case "tensor", False if scale is not BLOCKWISE:
            input_scale = STATIC_INPUT
        case (("token" | "tensor"), True) if scale is not BLOCKWISE:
            input_scale = PER_TOKEN
        case "group", True if scale is BLOCKWISE and inputs.integer("group_size") == BLOCK:
            input_scale = PER_BLOCK
        case _:
            raise inputs.wrong(
                "strategy",
                "tensor, static, or token, dynamic; for weights in blocks dynamic groups of 128",
            )
    return Float8Encoding(config=Float8Config(scale, input_scale))


def _int8(group: ConfigFile, weights: ConfigFile, inputs: ConfigFile) -> Int8Encoding:
    numbers: Mapping[str, int | str] = {"num_bits": 8, "type": "int", "symmetric": True}
    _check(weights, {**numbers, "dynamic": False})
    strategy = weights.string("strategy")
    if strategy not in ("tensor", "channel"):
        raise weights.wrong("strategy", "tensor or channel")
    if not group.has("input_activations"):
        return Int8Encoding(is_tensor=strategy == "tensor")
    _check(inputs, {**numbers, "dynamic": True})
    if inputs.string("strategy") != "token":
        raise inputs.wrong("strategy", "token")
    return W8A8Encoding(is_tensor=strategy == "tensor")


def _packed(weights: ConfigFile) -> PackQuantizedEncoding:
    _check(weights, {"num_bits": 4, "type": "int", "dynamic": False})
    match weights.string("strategy"):
        case "group":
            group_size = weights.integer("group_size")
            if group_size not in GROUP_SIZES:
                raise weights.wrong("group_size", f"one of {', '.join(map(str, GROUP_SIZES))}")
        case "channel":
            group_size = -1
        case _:
            raise weights.wrong("strategy", "group or channel")
    order = weights.string("actorder", "static")
    if order not in ("group", "dynamic", "weight", "static"):
        raise weights.wrong("actorder", "null, weight, static or group")
    return PackQuantizedEncoding(
        group_size=group_size,
        is_symmetric=weights.boolean("symmetric", True),
        has_act_order=order in ("group", "dynamic"),
    )


def _check(section: ConfigFile, expected: Mapping[str, int | str]) -> None:
    """Raise ModelError unless the section says `expected`; missing booleans are compressed-tensors'
    defaults, symmetric and not dynamic."""
    defaults = {"symmetric": True, "dynamic": False, "type": "int"}
    section = section.with_defaults(defaults)
    for key, value in expected.items():
        match value:
            case bool():
                found: object = section.boolean(key, value)
            case int():
                found = section.integer(key)
            case str():
                found = section.string(key)
        if found != value:
            raise section.wrong(key, str(value).lower())

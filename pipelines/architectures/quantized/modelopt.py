"""Checkpoints of NVIDIA ModelOpt, FP8 and NVFP4. No torch.

https://github.com/NVIDIA/TensorRT-Model-Optimizer: the configuration is config.json's
`quantization_config` or, before that, a file of its own.
"""

from pathlib import Path

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig
from quire.pipelines.architectures.quantized.float8 import (
    STATIC_INPUT,
    TENSOR,
    Float8Config,
    Float8Encoding,
)
from quire.pipelines.architectures.quantized.fp4 import NVFP4, NVFP4_GROUP
from quire.pipelines.architectures.quantized.names import names_in

OWN_FILE = "hf_quant_config.json"

_CACHE_SCALES = (".k_scale", ".v_scale", ".k_bmm_quantizer._amax", ".v_bmm_quantizer._amax")


def read_modelopt(section: ConfigFile) -> QuantConfig:
    """Of `quant_method` modelopt, or of the object `quantization` of its own file.

    An 8-bit KV cache is an option of whoever serves: it is kept in the model's dtype.

    Raises:
        ModelError: another algorithm than FP8 or NVFP4.
    """
    match section.string("quant_algo"):
        case "FP8":
            encoding: Encoding = Float8Encoding(config=Float8Config(TENSOR, STATIC_INPUT))
        case "NVFP4" | "W4A16_NVFP4":
            if section.integer("group_size", NVFP4_GROUP) != NVFP4_GROUP:
                raise section.wrong("group_size", str(NVFP4_GROUP))
            encoding = NVFP4
        case _:
            raise section.wrong("quant_algo", "FP8, NVFP4 or W4A16_NVFP4")
    names = (*names_in(section, "ignore"), *names_in(section, "exclude_modules"))
    if not (section.has("kv_cache_scheme") or section.has("kv_cache_quant_algo")):
        return QuantConfig(encoding, names)
    return QuantConfig(
        encoding,
        names,
        ignored_suffixes=_CACHE_SCALES,
        notes=("the checkpoint's scales of an 8-bit KV cache are not used: it is not quantized",),
    )


def read_own_file(folder: Path) -> QuantConfig:
    """Of hf_quant_config.json; without one nothing is quantized."""
    path = folder / OWN_FILE
    if not path.is_file():
        return UNQUANTIZED
    section = ConfigFile.read(path).section("quantization")
    return read_modelopt(section) if section.has("quant_algo") else UNQUANTIZED

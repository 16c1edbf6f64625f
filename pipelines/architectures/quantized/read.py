"""From config.json's `quantization_config` to a `QuantConfig`. No torch."""

from collections.abc import Callable, Mapping
from pathlib import Path

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig
from quire.pipelines.architectures.quantized.compressed_tensors import read_compressed_tensors
from quire.pipelines.architectures.quantized.float8 import read_fbgemm_fp8, read_fp8
from quire.pipelines.architectures.quantized.gptq_awq import read_awq, read_gptq
from quire.pipelines.architectures.quantized.modelopt import read_modelopt, read_own_file


def _read_mxfp4(_: ConfigFile) -> QuantConfig:
    """transformers' mxfp4 is of stacked experts alone, which the architecture reads."""
    return UNQUANTIZED


_READERS: Mapping[str, Callable[[ConfigFile], QuantConfig]] = {
    "gptq": read_gptq,
    "awq": read_awq,
    "fp8": read_fp8,
    "fbgemm_fp8": read_fbgemm_fp8,
    "compressed-tensors": read_compressed_tensors,
    "modelopt": read_modelopt,
    "mxfp4": _read_mxfp4,
}
"""By `quant_method`."""


def read_quant_config(config: ConfigFile, folder: Path) -> QuantConfig:
    """What config.json says, or a file of its own beside it in `folder`.

    Raises:
        ModelError: a method that is not supported, or an option of it.
    """
    if not config.has("quantization_config"):
        # Of a model with images some keep it with the decoder's own keys.
        config = config.section("text_config")
    if not config.has("quantization_config"):
        return read_own_file(folder)
    section = config.section("quantization_config")
    method = section.string("quant_method")
    if method not in _READERS:
        raise section.wrong("quant_method", f"one of {', '.join(_READERS)}")
    return _READERS[method](section)

"""From a model folder to its `ModelSpec`. No torch."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.gguf_config import read_gguf_config
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig
from quire.pipelines.architectures.quantized.gguf import read_gguf_quant
from quire.pipelines.architectures.quantized.read import read_quant_config
from quire.pipelines.architectures.registry import (
    ANY_NAME,
    ARCHITECTURES,
    SupportedArchitecture,
    find_architecture,
)
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.weights.gguf_file import gguf_header_bytes, is_gguf, read_gguf
from quire.pipelines.weights.gguf_names import hugging_face_entries


def load_model_spec(
    folder: Path, architectures: Sequence[SupportedArchitecture] = ARCHITECTURES
) -> ModelSpec:
    """Read config.json, and generation_config.json where there is one; or a GGUF file.

    Raises:
        ModelError: a file or key is missing, mistyped or out of range, the architecture or the
            quantization is not supported.
    """
    if is_gguf(folder) and architectures[0].name == ANY_NAME:
        raise ModelError(f"{folder}: --engine huggingface expects a folder, found a GGUF file")
    if is_gguf(folder):
        return _load_gguf_spec(folder, architectures)
    config = ConfigFile.read(folder / "config.json")
    row = find_architecture(config.strings("architectures"), config.name, architectures)
    spec = row.read(config)
    spec = dataclasses.replace(
        spec,
        architecture=spec.architecture if row.name == ANY_NAME else row.name,
        quant=_quant_of(spec, read_quant_config(config, folder)),
        eos_token_ids=tuple(dict.fromkeys((*spec.eos_token_ids, *_generation_eos(folder)))),
    )
    try:
        spec.tensors()
    except ValueError as error:
        raise ModelError(
            f"{config.name}: quantization_config: expected one that fits the model's sizes, "
            f"found {error}"
        ) from None
    return spec


def _quant_of(spec: ModelSpec, quant: QuantConfig) -> QuantConfig:
    """`quant` with the names of this model: of its head, which lists call lm_head, and of prefixes
    that checkpoints have otherwise."""
    if quant == UNQUANTIZED:
        return quant
    head = spec.lm_head.names if spec.lm_head and quant.skips("lm_head") else ()
    return dataclasses.replace(
        quant,
        skipped=tuple(dict.fromkeys((*quant.skipped, *head))),
        renamed=spec.renamed_weights,
    )


def config_bytes(folder: Path) -> bytes:
    """What says how the model is configured: config.json, or the header of a GGUF file.

    Raises:
        ModelError: as `load_model_spec`.
    """
    if is_gguf(folder):
        return gguf_header_bytes(folder)
    return (folder / "config.json").read_bytes()


def _load_gguf_spec(path: Path, architectures: Sequence[SupportedArchitecture]) -> ModelSpec:
    file = read_gguf(path)
    config = read_gguf_config(file)
    row = find_architecture(config.strings("architectures"), config.name, architectures)
    quant = read_gguf_quant(hugging_face_entries(file))
    return dataclasses.replace(row.read(config), architecture=row.name, quant=quant)


def _generation_eos(folder: Path) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    return ConfigFile.read(path).token_ids("eos_token_id") if path.is_file() else ()

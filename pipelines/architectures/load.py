"""From a model folder to its `ModelSpec`. No torch."""

import dataclasses
from pathlib import Path

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.quant_config import read_quant_config
from quire.pipelines.architectures.registry import find_architecture
from quire.pipelines.architectures.spec import ModelSpec


def load_model_spec(folder: Path) -> ModelSpec:
    """Read config.json, and generation_config.json where there is one.

    Raises:
        ModelError: a file or key is missing, mistyped or out of range, the architecture or the
            quantization is not supported.
    """
    config = ConfigFile.read(folder / "config.json")
    row = find_architecture(config.strings("architectures"), config.name)
    spec = row.read(config)
    return dataclasses.replace(
        spec,
        quant=read_quant_config(config),
        eos_token_ids=tuple(dict.fromkeys((*spec.eos_token_ids, *_generation_eos(folder)))),
    )


def _generation_eos(folder: Path) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    return ConfigFile.read(path).token_ids("eos_token_id") if path.is_file() else ()

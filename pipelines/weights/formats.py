"""Which format a model's weights have, by the names of the files. No torch."""

import enum
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from quire.config.errors import ModelError


class WeightsFormat(enum.Enum):
    """What the files of a checkpoint are."""

    safetensors = "safetensors"
    gguf = "gguf"
    pytorch = "pytorch"


SINGLE_FILES: Mapping[WeightsFormat, str] = {
    WeightsFormat.safetensors: "model.safetensors",
    WeightsFormat.pytorch: "pytorch_model.bin",
}
"""The name of an unsharded checkpoint in Hugging Face's layout; with `.index.json` after it, that of
the file that lists the shards."""

SUFFIXES: Mapping[str, WeightsFormat] = {
    ".safetensors": WeightsFormat.safetensors,
    ".gguf": WeightsFormat.gguf,
    ".bin": WeightsFormat.pytorch,
    ".pt": WeightsFormat.pytorch,
    ".pth": WeightsFormat.pytorch,
}

_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state")
"""What trainers leave beside a checkpoint, pickled as well."""


def format_of(name: str | PurePath) -> WeightsFormat | None:
    """The format that a file's name says; None where it is no file of weights."""
    path = PurePath(name)
    return None if path.name.startswith(_NO_WEIGHTS) else SUFFIXES.get(path.suffix)


def weights_format(paths: Iterable[str | PurePath]) -> WeightsFormat:
    """The format of a model's files of weights.

    Raises:
        ModelError: there are none, or of several formats, or a file is none of weights.
    """
    found = {str(path): format_of(path) for path in paths}
    formats = set(found.values())
    if len(formats) == 1 and (known := formats.pop()) is not None:
        return known
    names = ", ".join(found) or "no files"
    raise ModelError(f"weights: expected files of one of {', '.join(SUFFIXES)}, found {names}")

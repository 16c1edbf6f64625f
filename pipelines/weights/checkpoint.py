"""Opens a model's checkpoint and checks it against what the model needs, before a weight is read."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import LoadFormat
from quire.pipelines.architectures.encodings import TensorSpec
from quire.pipelines.weights.formats import WeightsFormat, format_of, weights_format
from quire.pipelines.weights.gguf_file import is_gguf
from quire.pipelines.weights.gguf_weights import GGUFWeights
from quire.pipelines.weights.pytorch_weights import PytorchWeights, pickled_files
from quire.pipelines.weights.random_weights import RandomWeights
from quire.pipelines.weights.safetensors_weights import (
    INDEX_FILE,
    SINGLE_FILE,
    TORCH_DTYPES,
    SafetensorWeights,
)
from quire.pipelines.weights.tensor_entry import TensorEntry
from quire.pipelines.weights.weights import Weights

logger = logging.getLogger(__name__)

_IGNORED_SUFFIXES = tuple(f"rotary_emb.{name}" for name in ("inv_freq", "cos_cached", "sin_cached"))
"""Buffers that old transformers saved; the rotary table is computed from config.json."""


class WeightTable(Protocol):
    """What a model's spec says of its weights."""

    @property
    def architecture(self) -> str: ...

    def tensors(self) -> dict[str, TensorSpec]:
        """Checkpoint name to what is expected there."""
        ...

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may have this tensor although nothing reads it."""
        ...


def load_weights(
    path: Path,
    spec: WeightTable | None = None,
    load_format: LoadFormat = "auto",
    progress: Callable[[str, float], None] = lambda phase, fraction: None,
) -> Weights:
    """The checkpoint at `path`, a folder or file, its files checked.

    `auto` reads safetensors, or GGUF where there are none, and refuses pickles. `random` needs no
    file, but `spec`. `progress` gets ("convert", fraction 0..1) while pickles are converted.

    Raises:
        ModelError: there is none of that format, or a file is damaged.
        ConfigError: `random` without `spec`.
    """
    if load_format == "random":
        if spec is None:
            raise ConfigError(
                "load_format: weights are made up for decoders only, not for encoders"
            )
        return RandomWeights(path, spec.tensors(), TORCH_DTYPES)
    match _choose_format(path, load_format):
        case WeightsFormat.safetensors:
            return SafetensorWeights(path)
        case WeightsFormat.pytorch:
            return PytorchWeights(path, progress)
        case WeightsFormat.gguf:
            if not is_gguf(path):
                raise ModelError(f"{path}: a folder with GGUF files; give the .gguf file itself")
            return GGUFWeights(path)


def _choose_format(path: Path, load_format: LoadFormat) -> WeightsFormat:
    if not path.is_dir():
        found = [weights_format([path])]
    else:
        named = {format_of(file) for file in path.iterdir()}
        if not SafetensorWeights.is_in(path):
            named.discard(WeightsFormat.safetensors)
        found = [kind for kind in WeightsFormat if kind in named]
    if load_format != "auto":
        wanted = WeightsFormat(load_format)
        if wanted not in found:
            there = " and ".join(kind.value for kind in found) or "none"
            raise ModelError(f"{path}: load_format: expected {load_format} weights, found {there}")
        return wanted
    if len(found) > 1:
        others = ", ".join(kind.value for kind in found[1:])
        logger.info("reading %s weights; %s has %s too", found[0].value, path, others)
    if not found or found[0] is WeightsFormat.pytorch:
        pickles = pickled_files(path)
        others = f"; {pickles[0]} is a pickle, which can run code" if pickles else ""
        advice = ": --load-format pytorch converts it" if pickles else ""
        wanted_files = f"{SINGLE_FILE} or {INDEX_FILE}"
        raise ModelError(f"{path}: expected {wanted_files}, found neither{others}{advice}")
    return found[0]


def match_weights(weights: Weights, spec: WeightTable) -> list[str]:
    """The names of the weights that `spec` needs and `weights` has, in the order of use.

    Raises:
        ModelError: one is missing or not what it should be, or the checkpoint has one more.
    """
    expected = spec.tensors()
    for name, tensor in expected.items():
        entry = weights.entries.get(name)
        if entry is None:
            if not tensor.is_optional:
                shape = list(tensor.shape)
                raise ModelError(
                    f"{weights.source}: {name}: expected a tensor {shape}, found nothing"
                )
        elif entry.dtype not in tensor.dtypes:
            raise entry.wrong(f"dtype {', '.join(tensor.dtypes)}", entry.dtype)
        elif entry.shape not in (tensor.shape, *tensor.other_shapes):
            raise entry.wrong(f"shape {list(tensor.shape)}", f"{list(entry.shape)}")
    _refuse_others(weights.entries, expected, spec)
    return [name for name in expected if name in weights.entries]


def _refuse_others(
    found: Mapping[str, TensorEntry], expected: Mapping[str, TensorSpec], spec: WeightTable
) -> None:
    for name, entry in found.items():
        is_ignored = name.endswith(_IGNORED_SUFFIXES) or spec.ignores(name)
        if name not in expected and not is_ignored:
            raise entry.wrong(f"no such tensor in {spec.architecture}", f"{list(entry.shape)}")

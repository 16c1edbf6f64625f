"""Opens a model's checkpoint and checks it against what the model needs, before a weight is read."""

from collections.abc import Mapping
from pathlib import Path

from quire.config.errors import ModelError
from quire.pipelines.architectures.encodings import TensorSpec
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.weights.safetensors_weights import (
    INDEX_FILE,
    SINGLE_FILE,
    SafetensorWeights,
)
from quire.pipelines.weights.tensor_entry import TensorEntry
from quire.pipelines.weights.weights import Weights

_IGNORED_SUFFIX = "rotary_emb.inv_freq"
"""A buffer that old transformers saved; the rotary table is computed from config.json."""


def load_weights(folder: Path) -> Weights:
    """The checkpoint in `folder`, its files checked.

    Raises:
        ModelError: there is none, or a file is damaged.
    """
    if SafetensorWeights.is_in(folder):
        return SafetensorWeights(folder)
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    others = f"; {pickled[0]} is a pickle, which can run code: convert it" if pickled else ""
    raise ModelError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither{others}")


def match_weights(weights: Weights, spec: ModelSpec) -> list[str]:
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
        elif entry.shape != tensor.shape:
            raise entry.wrong(f"shape {list(tensor.shape)}", f"{list(entry.shape)}")
    _refuse_others(weights.entries, expected, spec)
    return [name for name in expected if name in weights.entries]


def _refuse_others(
    found: Mapping[str, TensorEntry], expected: Mapping[str, TensorSpec], spec: ModelSpec
) -> None:
    for name, entry in found.items():
        is_tied_head = name == spec.head_name and spec.tie_word_embeddings
        is_ignored = name.endswith(_IGNORED_SUFFIX) or name.startswith(spec.ignored_weights)
        if name not in expected and not is_tied_head and not is_ignored:
            raise entry.wrong(f"no such tensor in {spec.architecture}", f"{list(entry.shape)}")

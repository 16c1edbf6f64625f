"""Checkpoints whose tensors have other names than the model's spec knows."""

from collections.abc import Callable, Mapping, Sequence

import torch

from quire.pipelines.weights.tensor_entry import TensorEntry
from quire.pipelines.weights.weights import Weights


class RenamedWeights:
    """`weights`, each tensor under the name that `rename` gives for its own.

    Errors about a tensor name it as the file does.

    Raises:
        ModelError: two tensors get the same name.
    """

    def __init__(self, weights: Weights, rename: Callable[[str], str]) -> None:
        self._weights = weights
        self._stored: dict[str, str] = {}
        for name, entry in weights.entries.items():
            new = rename(name)
            if new in self._stored:
                raise entry.wrong(f"no other name for {self._stored[new]}", "both")
            self._stored[new] = name
        self.source = weights.source
        self.entries: Mapping[str, TensorEntry] = {
            new: weights.entries[name] for new, name in self._stored.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """As `Weights.read`."""
        return self._weights.read(self._stored[name])


def with_prefixes(weights: Weights, prefixes: Sequence[tuple[str, str]]) -> RenamedWeights:
    """`weights`, with the first of `prefixes` that a name begins with replaced by its other.

    Raises:
        ModelError: as of `RenamedWeights`.
    """

    def rename(name: str) -> str:
        for old, new in prefixes:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return RenamedWeights(weights, rename)

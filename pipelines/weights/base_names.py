"""Checkpoints that were saved from a model without its head."""

import torch

from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.weights.weights import Weights


class _WholeNames:
    """`weights`, with `spec.base_prefix` before the names that `spec` does not know without it."""

    def __init__(self, weights: Weights, spec: ModelSpec) -> None:
        self.source = weights.source
        self._weights = weights
        known = spec.tensors()
        self._stored = {
            name if name in known or spec.ignores(name) else f"{spec.base_prefix}{name}": name
            for name in weights.entries
        }
        self.entries = {name: weights.entries[stored] for name, stored in self._stored.items()}

    def read(self, name: str) -> torch.Tensor:
        """As `Weights.read`."""
        return self._weights.read(self._stored[name])


def with_whole_names(weights: Weights, spec: ModelSpec) -> Weights:
    """`weights` by the names of the whole model.

    A model without head saves `h.0.ln_1.weight` where the whole one saves
    `transformer.h.0.ln_1.weight` (openai-community/gpt2). Errors name a tensor as its file does.
    """
    prefix = spec.base_prefix
    if not prefix or any(name.startswith(prefix) for name in weights.entries):
        return weights
    return _WholeNames(weights, spec)

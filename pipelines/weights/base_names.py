"""Checkpoints that were saved from a model without its head."""

from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.weights.renamed import RenamedWeights
from quire.pipelines.weights.weights import Weights


def with_whole_names(weights: Weights, spec: ModelSpec) -> Weights:
    """`weights` by the names of the whole model.

    A model without head saves `h.0.ln_1.weight` where the whole one saves
    `transformer.h.0.ln_1.weight` (openai-community/gpt2). Errors name a tensor as its file does.
    """
    prefix = spec.base_prefix
    if not prefix or any(name.startswith(prefix) for name in weights.entries):
        return weights
    known = spec.tensors()
    return RenamedWeights(
        weights,
        lambda name: name if name in known or spec.ignores(name) else f"{prefix}{name}",
    )

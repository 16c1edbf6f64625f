"""Checkpoints of models whose head is the embedding, which may name it as either or as both."""

import torch

from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.weights.renamed import with_prefixes
from quire.pipelines.weights.weights import Weights


def with_tied_head(weights: Weights, spec: ModelSpec) -> Weights:
    """`weights` with the embedding under its own name, where `spec` has no head of its own.

    Tools that store shared tensors once keep either name (safetensors' `save_model`: the first).

    Raises:
        ModelError: both are there and differ, so config.json is wrong about them.
    """
    head, embedding = spec.tied_head, spec.embedding.name
    if head is None or head not in weights.entries:
        return weights
    if embedding not in weights.entries:
        return with_prefixes(weights, ((head, embedding),))
    first, second = weights.entries[embedding], weights.entries[head]
    is_alike = (first.dtype, first.shape) == (second.dtype, second.shape)
    if not is_alike or not torch.equal(weights.read(embedding), weights.read(head)):
        expected = f"the numbers of {embedding}, as tie_word_embeddings is true in config.json"
        raise second.wrong(expected, "others: set it to false if the head is right")
    return weights

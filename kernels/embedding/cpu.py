"""Embeddings on a CPU: the compiled kernel where it was installed, else torch's."""

import torch

from quire.kernels.embedding.reference import embedding_reference
from quire.kernels.native import library
from quire.kernels.native.row_ops import embedding_native, is_native


def embedding_cpu(
    tokens_T: torch.Tensor, weight_VC: torch.Tensor, *, scale: float = 1.0
) -> torch.Tensor:
    """As `embedding`.

    Raises:
        ValueError: a token outside the table.
    """
    native = library()
    if native is not None and is_native(weight_VC):
        found = embedding_native(native, tokens_T, weight_VC, scale=scale)
        if found is not None:
            return found
    is_wrong = (tokens_T < 0) | (tokens_T >= weight_VC.shape[0])
    if is_wrong.any():
        raise ValueError(
            f"tokens_T must be in [0, {weight_VC.shape[0]}), got {int(tokens_T[is_wrong][0])}"
        )
    return embedding_reference(tokens_T, weight_VC, scale=scale)

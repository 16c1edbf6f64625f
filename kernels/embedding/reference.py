"""Embeddings in plain torch: the definition of correct."""

import torch


def embedding_reference(
    tokens_T: torch.Tensor, weight_VC: torch.Tensor, *, scale: float = 1.0
) -> torch.Tensor:
    """As `embedding`."""
    return vocab_parallel_embedding_reference(tokens_T, weight_VC, 0, scale=scale)


def vocab_parallel_embedding_reference(
    tokens_T: torch.Tensor, weight_VC: torch.Tensor, vocab_start: int, *, scale: float = 1.0
) -> torch.Tensor:
    """As `vocab_parallel_embedding`."""
    local = tokens_T.long() - vocab_start
    is_here = (local >= 0) & (local < weight_VC.shape[0])
    out = weight_VC.new_zeros(len(tokens_T), weight_VC.shape[1])
    rows = weight_VC[local[is_here]]
    out[is_here] = rows if scale == 1.0 else (rows.float() * scale).to(rows.dtype)
    return out

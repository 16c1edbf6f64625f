"""Latent attention over pages, one context at a time: the definition of correct."""

import torch

from quire.kernels.ragged_batch import RaggedBatch


def flare_mla_decode_ragged_reference(
    q_THD: torch.Tensor,
    latent_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    qk_rope_dim: int = 64,
    decode_plan: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `flare_mla_decode_ragged`, computed in float32 (float64 for float64 queries)."""
    wide = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    tokens, heads, width = q_THD.shape
    latent_dim = width - qk_rope_dim
    out = q_THD.new_empty(tokens, heads, latent_dim)
    token = 0
    for context, (count, length) in enumerate(
        zip(batch.query_lengths, batch.kv_lengths, strict=True)
    ):
        keys = latent_cache[batch.lookup_table[context].long()].flatten(0, 1)[:length].to(wide)
        # Token by token: a matmul of several may round a row by how many there are.
        for end in range(length - count + 1, length + 1):
            scores = q_THD[token].to(wide, copy=True) @ keys[:end].T * scale
            out[token] = (scores.softmax(-1) @ keys[:end, :latent_dim]).to(q_THD.dtype)
            token += 1
    return out

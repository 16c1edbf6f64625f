"""Ragged causal attention over pages, one context at a time: the definition of correct."""

import torch

from quire.kernels.ragged_batch import RaggedBatch


def flash_attention_ragged_reference(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """As `flash_attention_ragged`, computed in float32 (float64 for float64 queries)."""
    wide = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    group = q_THD.shape[1] // k_cache.shape[1]
    out_THD = torch.empty_like(q_THD)
    start = 0
    for context, (count, length) in enumerate(
        zip(batch.query_lengths, batch.kv_lengths, strict=True)
    ):
        pages = batch.lookup_table[context].long()
        # [P, K, page, D] -> [H, keys, D]
        k, v = (
            cache[pages]
            .transpose(0, 1)
            .flatten(1, 2)[:, :length]
            .repeat_interleave(group, 0)
            .to(wide)
            for cache in (k_cache, v_cache)
        )
        q = q_THD[start : start + count].transpose(0, 1).to(wide)
        distance = torch.arange(length - count, length)[:, None] - torch.arange(length)
        hidden = distance < 0
        if sliding_window is not None:
            hidden |= distance >= sliding_window
        scores = (q @ k.transpose(1, 2)) * scale
        scores = scores.masked_fill(hidden.to(scores.device), float("-inf"))
        out = scores.softmax(-1) @ v
        out_THD[start : start + count] = out.transpose(0, 1).to(q_THD.dtype)
        start += count
    return out_THD

"""Ragged causal attention over pages, one context at a time: the definition of correct."""

import torch

from quire.kernels.flash_attention_ragged.splits import SPLIT_KEYS
from quire.kernels.ragged_batch import RaggedBatch

QUERY_CHUNK = 256
"""Queries of a context whose scores are held at once: bounds memory."""


def flash_attention_ragged_reference(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    decode_plan: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `flash_attention_ragged`, computed in float32 (float64 for float64 queries)."""
    wide = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    _, heads, head_dim = q_THD.shape
    _, kv_heads, page_size, _ = k_cache.shape
    out_THD = torch.empty_like(q_THD)
    token = 0
    for context, (count, length) in enumerate(
        zip(batch.query_lengths, batch.kv_lengths, strict=True)
    ):
        pages = batch.lookup_table[context, : -(-length // page_size)].long()
        # [P, K, page, D] -> [K, keys, D]
        k, v = (
            cache[pages].to(wide).transpose(0, 1).flatten(1, 2)[:, :length]
            for cache in (k_cache, v_cache)
        )
        if sliding_window is not None:
            # Released pages: others may have written NaN there.
            v[:, : max(0, length - count - sliding_window + 1)] = 0
        for start in range(0, count, QUERY_CHUNK):
            rows = slice(token + start, token + min(count, start + QUERY_CHUNK))
            q = q_THD[rows].to(wide)
            position = torch.arange(length - count + start, length)[: len(q), None].to(q.device)
            distance = position - torch.arange(length, device=q.device)
            hidden = distance < 0
            if sliding_window is not None:
                hidden |= distance >= sliding_window
            # [K, H / K * T, D]: the query heads that share a key head read it as one matrix.
            q = q.view(len(q), kv_heads, -1, head_dim).permute(1, 2, 0, 3).flatten(1, 2)
            scores = (q @ k.transpose(1, 2)) * (scale * k_scale)
            if soft_cap is not None:
                scores = soft_cap * (scores / soft_cap).tanh()
            scores = scores.view(heads, -1, length).masked_fill(hidden, float("-inf"))
            if sinks is not None:
                column = sinks.to(wide)[:, None, None].expand(-1, scores.shape[1], 1)
                scores = torch.cat((scores, column), -1)
            weights = scores.softmax(-1)[..., :length].view(kv_heads, -1, length)
            out = (weights @ v * v_scale).view(heads, -1, head_dim)
            out_THD[rows] = out.transpose(0, 1).to(q_THD.dtype)
        token += count
    return out_THD


def plan_decode_reference(batch: RaggedBatch, *, sliding_window: int | None = None) -> torch.Tensor:
    """As `plan_decode`."""
    position = batch.cache_lengths[: batch.num_decode]
    first_key = torch.zeros_like(position)
    if sliding_window is not None:
        first_key = (position - sliding_window + 1).clamp_min(0)
    splits = position // SPLIT_KEYS - first_key // SPLIT_KEYS + 1
    total = splits.cumsum(0, dtype=torch.int32)
    return torch.cat((total.new_zeros(1), total))

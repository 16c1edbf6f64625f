"""Cross attention over pages, one context at a time: the definition of correct."""

from itertools import pairwise

import torch


def cross_attention_ragged_reference(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    input_row_offsets: torch.Tensor,
    kv_lengths: torch.Tensor,
    lookup_table: torch.Tensor,
    *,
    scale: float,
    local_window_size: int = -1,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `cross_attention_ragged`, computed in float32 (float64 for float64 queries)."""
    wide = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    group = q_THD.shape[1] // k_cache.shape[1]
    out = torch.zeros_like(q_THD)
    bounds = pairwise(input_row_offsets.tolist())
    for context, ((start, end), length) in enumerate(zip(bounds, kv_lengths.tolist(), strict=True)):
        pages = lookup_table[context].long()
        # [P, K, page, D] -> [H, keys, D]
        k, v = (
            cache[pages].transpose(0, 1).flatten(1, 2)[:, :length].repeat_interleave(group, 0)
            for cache in (k_cache, v_cache)
        )
        k, v = k.to(wide), v.to(wide)
        # Token by token: a matmul of several may round a row by how many there are.
        for token in range(start, end):
            scores = q_THD[token, :, None].to(wide, copy=True) @ k.mT * scale
            if local_window_size > 0 and positions is not None:
                distance = positions[token] - torch.arange(length, device=q_THD.device)
                scores = scores.masked_fill(distance.abs() >= local_window_size, float("-inf"))
            # The softmax of a row that sees no key is NaN.
            result = scores.softmax(-1).nan_to_num(0.0) @ v
            out[token] = result[:, 0].to(q_THD.dtype)
    return out

"""Dense attention in plain torch, one batch entry at a time: the definition of correct."""

import torch


def flash_attention_gpu_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: str = "causal",
    scale: float,
    local_window_size: int = -1,
    valid_length: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `flash_attention_gpu`, computed in float32 (float64 for float64 queries)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    entries, length, heads, _ = q.shape
    out = torch.zeros_like(q)
    lengths = [length] * entries if valid_length is None else valid_length.tolist()
    for entry, valid in enumerate(lengths):
        # Stale memory past the valid length may hold NaN, which a masked score would keep.
        rows = slice(0, min(valid, length))
        one_q, one_k, one_v = (x[entry, rows].to(wide).transpose(0, 1) for x in (q, k, v))
        group = heads // k.shape[2]
        scores = (one_q @ one_k.repeat_interleave(group, 0).mT) * scale
        position = torch.arange(scores.shape[1], device=q.device)
        distance = position[:, None] - position
        hidden = distance < 0 if mask == "causal" else torch.zeros_like(distance, dtype=torch.bool)
        if local_window_size > 0:
            hidden |= distance.abs() >= local_window_size
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        result = weights @ one_v.repeat_interleave(group, 0)
        out[entry, rows] = result.transpose(0, 1).to(q.dtype)
    return out

"""Head norm, rotation and cache write in plain torch: the definition of correct, and the CPU path.

Exact per row by its choice of operations: each is elementwise with one correctly rounded result
(no fused multiply-add, no `rsqrt`, whose vector body and scalar tail round differently), or a
mean over the head dimension, which torch sums in the same order for any number of rows.
"""

import torch

from quire.kernels.ragged_batch import RaggedBatch


def fused_qk_ragged_rope_reference(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    num_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    epsilon: float = 1e-6,
) -> torch.Tensor:
    """As `fused_qk_ragged_rope`."""
    _, kv_heads, page_size, head_dim = k_cache.shape
    heads_THD = qkv.view(qkv.shape[0], -1, head_dim)
    q, k, v = torch.split(heads_THD, [num_heads, kv_heads, kv_heads], 1)
    cos, sin = cos_sin[batch.positions.long()].unsqueeze(1).chunk(2, -1)
    pages = batch.slots // page_size
    offsets = batch.slots % page_size
    k_cache[pages, :, offsets] = _rotate(_normed(k, k_norm, epsilon), cos, sin)
    v_cache[pages, :, offsets] = v
    return _rotate(_normed(q, q_norm, epsilon), cos, sin)


def _normed(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """RMS norm over the last axis, rounded to x.dtype before and after the weight, as HF does."""
    if weight is None:
        return x
    wide = x.float()
    inverse = 1 / (wide.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
    return weight * (wide * inverse).to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.float().chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)

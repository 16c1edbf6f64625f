"""Head norm, rotation and cache write in plain torch: the definition of correct.

Exact per row by its choice of operations: each is elementwise with one correctly rounded result
(no fused multiply-add, no `rsqrt`, whose vector body and scalar tail round differently), or a
mean over the last dimension, which torch sums in the same order for any number of rows.
"""

import torch

from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.rms_norm.reference import rms_norm_reference
from quire.kernels.split_qkv_ragged.reference import places_of, write_cache


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
    interleaved: bool = False,
    norm_weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """As `fused_qk_ragged_rope`."""
    _, kv_heads, page_size, head_dim = k_cache.shape
    heads_THD = qkv.view(qkv.shape[0], num_heads + 2 * kv_heads, head_dim)
    q, k, v = torch.split(heads_THD, [num_heads, kv_heads, kv_heads], 1)
    cos, sin = cos_sin[batch.positions.long()].unsqueeze(1).chunk(2, -1)

    def rotated(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            rows = x if weight.shape[0] == head_dim else x.flatten(1)
            normed, _ = rms_norm_reference(
                rows,
                weight,
                epsilon,
                weight_offset=norm_weight_offset,
                multiply_before_cast=multiply_before_cast,
            )
            x = normed.view(x.shape)
        return _rotate(x.float(), cos, sin, interleaved)

    places = places_of(batch.slots, page_size)
    write_cache(k_cache, places, rotated(k, k_norm), k_scale)
    write_cache(v_cache, places, v, v_scale)
    return rotated(q, q_norm).to(qkv.dtype)


def _rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """The first 2 * cos.shape[-1] elements of each head turned, the others as they are."""
    half = cos.shape[-1]
    if 2 * half < x.shape[-1]:
        turned = _rotate(x[..., : 2 * half], cos, sin, interleaved)
        return torch.cat((turned, x[..., 2 * half :]), -1)
    if interleaved:
        left, right = x.view(*x.shape[:-1], half, 2).unbind(-1)
        return torch.stack((left * cos - right * sin, right * cos + left * sin), -1).flatten(-2)
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)

"""Rotation, norm and cache write in plain torch: the definition of correct, and the CPU path.

Exact per row by its choice of operations, as `fused_qk_ragged_rope`.
"""

import torch

from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.rms_norm.reference import rms_norm_reference


def fused_latent_ragged_rope_reference(
    q_THD: torch.Tensor,
    absorbed_THL: torch.Tensor,
    kv_TD: torch.Tensor,
    kv_norm: torch.Tensor,
    cos_sin: torch.Tensor,
    latent_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    epsilon: float = 1e-6,
    interleaved: bool = False,
) -> torch.Tensor:
    """As `fused_latent_ragged_rope`."""
    latent_dim, rope_dim = absorbed_THL.shape[2], cos_sin.shape[1]
    latent_TL, key_TR = torch.split(kv_TD, [latent_dim, rope_dim], -1)
    cos, sin = cos_sin[batch.positions.long()].unsqueeze(1).chunk(2, -1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        shape, axis = ((rope_dim // 2, 2), -1) if interleaved else ((2, rope_dim // 2), -2)
        left, right = x.float().reshape(*x.shape[:-1], *shape).unbind(axis)
        both = (left * cos - right * sin, right * cos + left * sin)
        return torch.stack(both, axis).flatten(-2).to(x.dtype)

    normed_TL, _ = rms_norm_reference(latent_TL.contiguous(), kv_norm, epsilon)
    rows_TD = torch.cat([normed_TL, turned(key_TR.unsqueeze(1)).squeeze(1)], -1)
    latent_cache.view(-1, latent_cache.shape[2]).index_copy_(0, batch.slots, rows_TD)
    return torch.cat([absorbed_THL, turned(q_THD[..., -rope_dim:])], -1)

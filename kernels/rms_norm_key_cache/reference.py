"""RMS norm of cached keys in plain torch: the definition of correct, and the CPU path."""

import torch

from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.rms_norm.reference import rms_norm_reference


def rms_norm_key_cache_reference(
    k_cache: torch.Tensor,
    gamma: torch.Tensor,
    epsilon: float,
    batch: RaggedBatch,
    *,
    weight_offset: float = 0.0,
    rms_norm_cols: int | None = None,
    multiply_before_cast: bool = True,
    per_head_norm: bool = True,
) -> None:
    """As `rms_norm_key_cache`; gamma is as long as what is normalized."""
    page_size = k_cache.shape[2]
    place = (batch.slots // page_size, slice(None), batch.slots % page_size)
    keys_TKD = k_cache[place]
    shape = keys_TKD.shape
    rows = keys_TKD if per_head_norm else keys_TKD.flatten(1)
    rows[..., : len(gamma)], _ = rms_norm_reference(
        rows[..., : len(gamma)],
        gamma,
        epsilon,
        weight_offset=weight_offset,
        multiply_before_cast=multiply_before_cast,
    )
    k_cache[place] = rows.view(shape)

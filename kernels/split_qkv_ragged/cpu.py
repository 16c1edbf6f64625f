"""Split and cache write on a CPU: the compiled kernel where it was installed, else torch's."""

import torch

from quire.kernels.native import library
from quire.kernels.native.row_ops import MAX_ROPE_DIM, is_native, rope_native
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.reference import split_qkv_ragged_reference


def split_qkv_ragged_cpu(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    num_heads: int,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """As `split_qkv_ragged`."""
    native = library()
    if native is not None and is_native(qkv) and k_cache.shape[3] <= MAX_ROPE_DIM:
        return rope_native(
            native, qkv, None, k_cache, v_cache, batch, num_heads=num_heads, k_scale=k_scale,
            v_scale=v_scale,
        )  # fmt: skip
    return split_qkv_ragged_reference(
        qkv, k_cache, v_cache, batch, num_heads=num_heads, k_scale=k_scale, v_scale=v_scale
    )

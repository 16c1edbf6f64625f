"""Head norm, rotation and cache write on a CPU: the compiled kernel where it was installed, else
torch's."""

import torch

from quire.kernels.fused_qk_ragged_rope.reference import fused_qk_ragged_rope_reference
from quire.kernels.native import library
from quire.kernels.native.row_ops import MAX_ROPE_DIM, is_native, rope_native
from quire.kernels.ragged_batch import RaggedBatch


def fused_qk_ragged_rope_cpu(
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
    native = library()
    if native is not None and is_native(qkv) and k_cache.shape[3] <= MAX_ROPE_DIM:
        return rope_native(
            native, qkv, cos_sin, k_cache, v_cache, batch, num_heads=num_heads, q_norm=q_norm,
            k_norm=k_norm, epsilon=epsilon, interleaved=interleaved,
            norm_weight_offset=norm_weight_offset, multiply_before_cast=multiply_before_cast,
            k_scale=k_scale, v_scale=v_scale,
        )  # fmt: skip
    return fused_qk_ragged_rope_reference(
        qkv, cos_sin, k_cache, v_cache, batch, num_heads=num_heads, q_norm=q_norm, k_norm=k_norm,
        epsilon=epsilon, interleaved=interleaved, norm_weight_offset=norm_weight_offset,
        multiply_before_cast=multiply_before_cast, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip

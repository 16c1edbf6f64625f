"""Projection and cache write in plain torch: the definition of correct, and the CPU path."""

import torch

from quire.kernels.linear.reference import linear_reference
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.reference import split_qkv_ragged_reference


def fused_qkv_ragged_matmul_reference(
    x_TK: torch.Tensor,
    wqkv_NK: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    num_heads: int,
    bias_N: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """As `fused_qkv_ragged_matmul`."""
    qkv = linear_reference(x_TK, wqkv_NK, bias_N)
    return split_qkv_ragged_reference(
        qkv, k_cache, v_cache, batch, num_heads=num_heads, k_scale=k_scale, v_scale=v_scale
    )


def matmul_kv_cache_ragged_reference(
    x_TK: torch.Tensor,
    wkv_NK: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """As `matmul_kv_cache_ragged`."""
    kv = linear_reference(x_TK, wkv_NK)
    split_qkv_ragged_reference(
        kv, k_cache, v_cache, batch, num_heads=0, k_scale=k_scale, v_scale=v_scale
    )


def matmul_k_cache_ragged_reference(
    x_TK: torch.Tensor,
    wk_NK: torch.Tensor,
    k_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    k_scale: float = 1.0,
) -> None:
    """As `matmul_k_cache_ragged`."""
    k = linear_reference(x_TK, wk_NK)
    split_qkv_ragged_reference(k, k_cache, None, batch, num_heads=0, k_scale=k_scale)

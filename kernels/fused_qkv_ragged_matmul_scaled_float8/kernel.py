"""Triton: scaled fp8 projection, then the split of its rows."""

import torch

from quire.kernels.matmul_scaled_float8.kernel import dynamic_scaled_matmul_triton
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.kernel import split_qkv_ragged_triton


def fused_qkv_ragged_matmul_scaled_float8_triton(
    x_TK: torch.Tensor,
    wqkv_NK: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    num_heads: int,
    input_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    out_type: torch.dtype = torch.bfloat16,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """As `fused_qkv_ragged_matmul_scaled_float8`."""
    qkv = dynamic_scaled_matmul_triton(
        x_TK, wqkv_NK, input_scale, weight_scale, out_type=out_type, bias_N=bias_N
    )
    return split_qkv_ragged_triton(
        qkv, k_cache, v_cache, batch, num_heads=num_heads, k_scale=k_scale, v_scale=v_scale
    )

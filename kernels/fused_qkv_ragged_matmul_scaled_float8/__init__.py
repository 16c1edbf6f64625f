"""An fp8 projection to queries, keys and values whose keys and values go into the cache."""

from typing import Any

import torch

from quire.kernels.matmul_scaled_float8 import check_operands, check_scales
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.cache_checks import check_caches
from quire.kernels.torch_op import torch_op


def _fake(
    x_TK: torch.Tensor,
    k_cache: torch.Tensor,
    *,
    num_heads: int,
    out_type: torch.dtype = torch.bfloat16,
    **_: Any,
) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], num_heads, k_cache.shape[3], dtype=out_type)


@torch_op(fake=_fake, mutates=("k_cache", "v_cache"))
def fused_qkv_ragged_matmul_scaled_float8(
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
    """`dynamic_scaled_matmul`, then `split_qkv_ragged`; a token's bits are its own on CUDA.

    Args:
        x_TK: [T, C], float8_e4m3fn, contiguous.
        wqkv_NK: [(H + 2K) * D, C], float8_e4m3fn: of query heads, key heads, then value heads.
        k_cache: [num_pages, K, page_size, D] of `out_type`, or float8_e4m3fn; written at slots.
        v_cache: as `k_cache`.
        num_heads: H.
        input_scale: of x, as `a_scales` of `dynamic_scaled_matmul`.
        weight_scale: of wqkv, as `b_scales` of `dynamic_scaled_matmul`.
        bias_N: [(H + 2K) * D] of `out_type`, or None.
        out_type: of the projection: bfloat16, float16 or float32.
        k_scale, v_scale: what stored keys and values are multiplied by; 1 unless they are fp8.

    Returns:
        q_THD [T, H, D] of `out_type`.

    Raises:
        ValueError: a shape, dtype, device or scale outside the above.
    """
    check_operands(("x_TK", x_TK), ("wqkv_NK", wqkv_NK), bias_N, out_type)
    check_scales(x_TK, wqkv_NK, ("input_scale", input_scale), ("weight_scale", weight_scale))
    check_caches(k_cache, v_cache, out_type, x_TK.device, k_scale, v_scale)
    batch.check_matches("x_TK", x_TK)
    _, kv_heads, _, head_dim = k_cache.shape
    if num_heads < 0:
        raise ValueError(f"num_heads must be at least 0, got {num_heads}")
    if wqkv_NK.shape[0] != (num_heads + 2 * kv_heads) * head_dim:
        raise ValueError(
            f"wqkv_NK must have ({num_heads} + 2 * {kv_heads}) * {head_dim} rows, "
            f"got {wqkv_NK.shape[0]}"
        )
    if x_TK.is_cuda:
        from quire.kernels.fused_qkv_ragged_matmul_scaled_float8.kernel import (
            fused_qkv_ragged_matmul_scaled_float8_triton as run,
        )
    else:
        from quire.kernels.fused_qkv_ragged_matmul_scaled_float8.reference import (
            fused_qkv_ragged_matmul_scaled_float8_reference as run,
        )
    return run(
        x_TK, wqkv_NK, k_cache, v_cache, batch,
        num_heads=num_heads, input_scale=input_scale, weight_scale=weight_scale, bias_N=bias_N,
        out_type=out_type, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip

"""Rows of query, key and value heads apart: q returned, k and v written into the cache."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.cache_checks import check_caches
from quire.kernels.split_qkv_ragged.cpu import split_qkv_ragged_cpu
from quire.kernels.torch_op import torch_op


def _fake(qkv: torch.Tensor, k_cache: torch.Tensor, *, num_heads: int, **_: Any) -> torch.Tensor:
    return qkv.new_empty(qkv.shape[0], num_heads, k_cache.shape[3])


@torch_op(fake=_fake, mutates=("k_cache", "v_cache"))
def split_qkv_ragged(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    num_heads: int,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """Return the query heads of each row, write its key and value heads at `batch.slots`.

    What follows any projection of q, k and v that needs no rotation. A float8_e4m3fn cache holds
    value / scale, clamped to +-448 and rounded to nearest even (Micikevicius et al. 2022,
    https://arxiv.org/abs/2209.05433); other caches hold the value itself.

    Args:
        qkv: [T, (H + 2K) * D], each token's query heads, then key heads, then value heads;
            bfloat16, float16 or float32. Rows may lie further apart than they are wide.
        k_cache: [num_pages, K, page_size, D] in the dtype of qkv or float8_e4m3fn.
        v_cache: as `k_cache`.
        num_heads: H; 0 for rows of keys and values alone.
        k_scale: what a stored key is multiplied by when read; 1 unless the cache is fp8.
        v_scale: the same for values.

    Returns:
        q_THD [T, H, D] in the dtype of qkv, contiguous.

    Raises:
        ValueError: a shape, stride, dtype, device or scale outside the above.
    """
    check_tensor("qkv", qkv, ("T", "(H + 2K) * D"), FLOATS, contiguous=False)
    check_caches(k_cache, v_cache, qkv.dtype, qkv.device, k_scale, v_scale)
    _, kv_heads, _, head_dim = k_cache.shape
    if num_heads < 0:
        raise ValueError(f"num_heads must be at least 0, got {num_heads}")
    if qkv.shape[1] != (num_heads + 2 * kv_heads) * head_dim:
        raise ValueError(
            f"qkv must have ({num_heads} + 2 * {kv_heads}) * {head_dim} columns, got {qkv.shape[1]}"
        )
    if qkv.stride(1) != 1:
        raise ValueError(f"the columns of qkv must be contiguous, got strides {qkv.stride()}")
    batch.check_matches("qkv", qkv)
    options: dict[str, Any] = {"num_heads": num_heads, "k_scale": k_scale, "v_scale": v_scale}
    if not qkv.is_cuda:
        return split_qkv_ragged_cpu(qkv, k_cache, v_cache, batch, **options)
    from quire.kernels.split_qkv_ragged.kernel import split_qkv_ragged_triton

    return split_qkv_ragged_triton(qkv, k_cache, v_cache, batch, **options)

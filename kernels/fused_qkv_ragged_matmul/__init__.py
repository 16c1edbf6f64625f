"""Dense projections whose keys and values go straight into the cache.

Each is one `linear` and one `split_qkv_ragged`. On CUDA a token's bits do not depend on the other
tokens; on a CPU only `prepare_linear` followed by `split_qkv_ragged` keeps that promise.
"""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.cache_checks import check_cache, check_caches
from quire.kernels.torch_op import torch_op


def _fake(x_TK: torch.Tensor, k_cache: torch.Tensor, *, num_heads: int, **_: Any) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], num_heads, k_cache.shape[3])


def _fake_none(**_: Any) -> None:
    return None


@torch_op(fake=_fake, mutates=("k_cache", "v_cache"))
def fused_qkv_ragged_matmul(
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
    """Project to queries, which are returned, and to keys and values, which are cached.

    Args:
        x_TK: [T, C], bfloat16, float16 or float32, contiguous.
        wqkv_NK: [(H + 2K) * D, C] in the dtype of x, contiguous: weights of the query heads,
            then the key heads, then the value heads.
        k_cache: [num_pages, K, page_size, D] in the dtype of x, or float8_e4m3fn, which gets
            value / scale clamped to +-448; written at `batch.slots`.
        v_cache: as `k_cache`.
        num_heads: H.
        bias_N: [(H + 2K) * D] in the dtype of x, or None.
        k_scale: what a stored key is multiplied by when read; 1 unless the cache is fp8.
        v_scale: the same for values.

    Returns:
        q_THD [T, H, D] in the dtype of x.

    Raises:
        ValueError: a shape, dtype, device or scale outside the above.
    """
    _check_rows(x_TK, batch)
    check_caches(k_cache, v_cache, x_TK.dtype, x_TK.device, k_scale, v_scale)
    if num_heads < 0:
        raise ValueError(f"num_heads must be at least 0, got {num_heads}")
    columns = (num_heads + 2 * k_cache.shape[1]) * k_cache.shape[3]
    _check_weight("wqkv_NK", wqkv_NK, columns, x_TK)
    if bias_N is not None:
        check_tensor("bias_N", bias_N, (columns,), x_TK.dtype, device=x_TK.device)
    if x_TK.is_cuda:
        from quire.kernels.fused_qkv_ragged_matmul.kernel import (
            fused_qkv_ragged_matmul_triton as run,
        )
    else:
        from quire.kernels.fused_qkv_ragged_matmul.reference import (
            fused_qkv_ragged_matmul_reference as run,
        )
    return run(
        x_TK, wqkv_NK, k_cache, v_cache, batch,
        num_heads=num_heads, bias_N=bias_N, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip


@torch_op(fake=_fake_none, mutates=("k_cache", "v_cache"))
def matmul_kv_cache_ragged(
    x_TK: torch.Tensor,
    wkv_NK: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Project to keys and values and write them at `batch.slots`.

    Args:
        x_TK: [T, C], bfloat16, float16 or float32, contiguous.
        wkv_NK: [2 * K * D, C] in the dtype of x, contiguous: key heads, then value heads.
        k_cache: [num_pages, K, page_size, D] in the dtype of x, or float8_e4m3fn.
        v_cache: as `k_cache`.
        k_scale: what a stored key is multiplied by when read; 1 unless the cache is fp8.
        v_scale: the same for values.

    Raises:
        ValueError: a shape, dtype, device or scale outside the above.
    """
    _check_rows(x_TK, batch)
    check_caches(k_cache, v_cache, x_TK.dtype, x_TK.device, k_scale, v_scale)
    _check_weight("wkv_NK", wkv_NK, 2 * k_cache.shape[1] * k_cache.shape[3], x_TK)
    if x_TK.is_cuda:
        from quire.kernels.fused_qkv_ragged_matmul.kernel import (
            matmul_kv_cache_ragged_triton as run,
        )
    else:
        from quire.kernels.fused_qkv_ragged_matmul.reference import (
            matmul_kv_cache_ragged_reference as run,
        )
    run(x_TK, wkv_NK, k_cache, v_cache, batch, k_scale=k_scale, v_scale=v_scale)


@torch_op(fake=_fake_none, mutates=("k_cache",))
def matmul_k_cache_ragged(
    x_TK: torch.Tensor,
    wk_NK: torch.Tensor,
    k_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    k_scale: float = 1.0,
) -> None:
    """Project to keys and write them at `batch.slots`.

    Args:
        x_TK: [T, C], bfloat16, float16 or float32, contiguous.
        wk_NK: [K * D, C] in the dtype of x, contiguous.
        k_cache: [num_pages, K, page_size, D] in the dtype of x, or float8_e4m3fn.
        k_scale: what a stored key is multiplied by when read; 1 unless the cache is fp8.

    Raises:
        ValueError: a shape, dtype, device or scale outside the above.
    """
    _check_rows(x_TK, batch)
    check_cache("k_cache", k_cache, x_TK.dtype, x_TK.device, k_scale)
    _check_weight("wk_NK", wk_NK, k_cache.shape[1] * k_cache.shape[3], x_TK)
    if x_TK.is_cuda:
        from quire.kernels.fused_qkv_ragged_matmul.kernel import (
            matmul_k_cache_ragged_triton as run,
        )
    else:
        from quire.kernels.fused_qkv_ragged_matmul.reference import (
            matmul_k_cache_ragged_reference as run,
        )
    run(x_TK, wk_NK, k_cache, batch, k_scale=k_scale)


def _check_rows(x_TK: torch.Tensor, batch: RaggedBatch) -> None:
    check_tensor("x_TK", x_TK, ("T", "C"), FLOATS)
    batch.check_matches("x_TK", x_TK)


def _check_weight(name: str, weight_NK: torch.Tensor, columns: int, x_TK: torch.Tensor) -> None:
    check_tensor(name, weight_NK, (columns, x_TK.shape[1]), x_TK.dtype, device=x_TK.device)

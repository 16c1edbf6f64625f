"""Projections with packed weights whose keys and values go straight into the cache.

Each is the matmul of its format, then `split_qkv_ragged`. On CUDA a token's bits do not depend on
the other tokens; on a CPU the weights are dequantized in every call, as `matmul_gptq` says.
"""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.dequantizing_matmul import check_input
from quire.kernels.fused_qkv_ragged_matmul_quantized.reference import encodings_of
from quire.kernels.gguf import check_gguf_weight
from quire.kernels.gguf.encodings import in_features
from quire.kernels.gptq_awq.checks import check_int4
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.cache_checks import check_caches
from quire.kernels.torch_op import torch_op


def _fake_fused(
    x_TK: torch.Tensor, k_cache: torch.Tensor, *, num_heads: int, **_: Any
) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], num_heads, k_cache.shape[3])


@torch_op(fake=_fake_fused, mutates=("k_cache", "v_cache"))
def fused_qkv_ragged_matmul_quantized(
    x_TK: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    num_heads: int,
    group_size: int,
    qzeros: torch.Tensor | None = None,
    perm_idx: torch.Tensor | None = None,
    bias_N: torch.Tensor | None = None,
    zero_offset: int = 1,
    quant_method: str = "gptq",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """Project with 4-bit weights to queries, which are returned, and to cached keys and values.

    Args:
        x_TK: [T, C], bfloat16, float16 or float32, contiguous.
        qweight: as of `matmul_gptq` or `matmul_awq`, with N = (H + 2K) * D columns: of the query
            heads, then the key heads, then the value heads; so are scales, zeros and bias.
        scales: [groups, N].
        k_cache: [num_pages, K, page_size, D] in the dtype of x, or float8_e4m3fn, which gets
            value / scale clamped to +-448; written at `batch.slots`.
        v_cache: as `k_cache`.
        num_heads: H.
        group_size, qzeros, bias_N: as of `matmul_gptq`; AWQ needs zeros.
        perm_idx, zero_offset: as of `matmul_gptq`, for GPTQ alone; `quant_method` "gptq" or "awq".
        k_scale, v_scale: what a stored key or value is multiplied by when read; 1 unless fp8.

    Returns:
        q_THD [T, H, D] in the dtype of x.

    Raises:
        ValueError: a shape, dtype, device or number outside the above.
    """
    in_features, columns = check_int4(
        quant_method, qweight, qzeros, scales, group_size, perm_idx, zero_offset, x_TK.device
    )
    _check_zero_offset(quant_method, zero_offset)
    check_input(x_TK, in_features, columns, bias_N)
    _check_cached(x_TK, k_cache, v_cache, batch, k_scale, v_scale)
    _check_heads("qweight", columns, num_heads, 2 * k_cache.shape[1], k_cache)
    if x_TK.is_cuda:
        from quire.kernels.fused_qkv_ragged_matmul_quantized.kernel import (
            fused_qkv_ragged_matmul_quantized_triton as run,
        )
    else:
        from quire.kernels.fused_qkv_ragged_matmul_quantized.reference import (
            fused_qkv_ragged_matmul_quantized_reference as run,
        )
    return run(
        x_TK, qweight, scales, k_cache, v_cache, batch,
        num_heads=num_heads, group_size=group_size, qzeros=qzeros, perm_idx=perm_idx,
        bias_N=bias_N, zero_offset=zero_offset, quant_method=quant_method,
        k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip


def _check_zero_offset(quant_method: str, zero_offset: int) -> None:
    if quant_method == "awq" and zero_offset != 1:
        raise ValueError(f"zero_offset is of GPTQ weights, got {zero_offset} with AWQ")


def _fake_unfused(
    x_TK: torch.Tensor, q_weight: torch.Tensor, k_cache: torch.Tensor, **_: Any
) -> torch.Tensor:
    head_dim = k_cache.shape[3]
    return x_TK.new_empty(x_TK.shape[0], q_weight.shape[0] // head_dim, head_dim)


@torch_op(fake=_fake_unfused, mutates=("k_cache", "v_cache"))
def unfused_qkv_ragged_matmul_gguf_quantized(
    x_TK: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    v_weight: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    quantization_encoding_q: str,
    quantization_encoding_k: str | None = None,
    quantization_encoding_v: str | None = None,
    num_heads: int | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """Project with three GGUF weights to queries, which are returned, and to cached keys, values.

    Args:
        x_TK: [T, C], bfloat16, float16 or float32, contiguous.
        q_weight: [H * D, bytes per row] uint8: blocks as of `matmul_gguf`.
        k_weight, v_weight: [K * D, bytes per row] uint8.
        k_cache: [num_pages, K, page_size, D] in the dtype of x, or float8_e4m3fn, which gets
            value / scale clamped to +-448; written at `batch.slots`.
        v_cache: as `k_cache`.
        quantization_encoding_q: of `q_weight`, as of `dequantize_gguf`.
        quantization_encoding_k, quantization_encoding_v: None: that of q.
        num_heads: H; None: as many as `q_weight` has rows for.
        k_scale, v_scale: what a stored key or value is multiplied by when read; 1 unless fp8.

    Returns:
        q_THD [T, H, D] in the dtype of x.

    Raises:
        ValueError: an encoding, shape, dtype, device or scale outside the above.
    """
    encodings = encodings_of(
        quantization_encoding_q, quantization_encoding_k, quantization_encoding_v
    )
    _check_cached(x_TK, k_cache, v_cache, batch, k_scale, v_scale)
    _check_gguf("q", q_weight, encodings[0], num_heads, x_TK, k_cache)
    _check_gguf("k", k_weight, encodings[1], k_cache.shape[1], x_TK, k_cache)
    _check_gguf("v", v_weight, encodings[2], k_cache.shape[1], x_TK, k_cache)
    if x_TK.is_cuda:
        from quire.kernels.fused_qkv_ragged_matmul_quantized.kernel import (
            unfused_qkv_ragged_matmul_gguf_quantized_triton as run,
        )
    else:
        from quire.kernels.fused_qkv_ragged_matmul_quantized.reference import (
            unfused_qkv_ragged_matmul_gguf_quantized_reference as run,
        )
    return run(
        x_TK, q_weight, k_weight, v_weight, k_cache, v_cache, batch,
        quantization_encoding_q=encodings[0], quantization_encoding_k=encodings[1],
        quantization_encoding_v=encodings[2], num_heads=num_heads, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip


def _check_cached(
    x_TK: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    k_scale: float,
    v_scale: float,
) -> None:
    check_tensor("x_TK", x_TK, ("T", "C"), FLOATS)
    check_caches(k_cache, v_cache, x_TK.dtype, x_TK.device, k_scale, v_scale)
    batch.check_matches("x_TK", x_TK)


def _check_gguf(
    part: str,
    weight: torch.Tensor,
    encoding: str,
    heads: int | None,
    x_TK: torch.Tensor,
    k_cache: torch.Tensor,
) -> None:
    name = f"{part}_weight"
    check_gguf_weight(name, weight, encoding, f"quantization_encoding_{part}", x_TK.device)
    found = in_features(weight.shape[1], encoding)
    if found != x_TK.shape[1]:
        raise ValueError(
            f"{name} must have rows of {x_TK.shape[1]} {encoding} weights, got {found}"
        )
    if heads is None:
        heads = weight.shape[0] // k_cache.shape[3]
    _check_heads(name, weight.shape[0], heads, 0, k_cache)


def _check_heads(
    name: str, columns: int, num_heads: int, kv_heads: int, k_cache: torch.Tensor
) -> None:
    if num_heads < 0:
        raise ValueError(f"num_heads must be at least 0, got {num_heads}")
    head_dim = k_cache.shape[3]
    if columns != (num_heads + kv_heads) * head_dim:
        raise ValueError(
            f"{name} must be of ({num_heads} + {kv_heads}) * {head_dim} outputs, got {columns}"
        )

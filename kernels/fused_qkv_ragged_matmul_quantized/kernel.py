"""Triton: the matmul of the format, then its rows split into the cache."""

import torch

from quire.kernels.dequantizing_matmul.kernel import dequantizing_matmul
from quire.kernels.fused_qkv_ragged_matmul_quantized.reference import encodings_of
from quire.kernels.gguf.kernel import packed_gguf
from quire.kernels.gptq_awq.kernel import matmul_awq_triton, matmul_gptq_triton
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.kernel import split_qkv_ragged_triton


def fused_qkv_ragged_matmul_quantized_triton(
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
    """As `fused_qkv_ragged_matmul_quantized`."""
    if quant_method == "awq" and qzeros is not None:
        qkv = matmul_awq_triton(x_TK, qweight, qzeros, scales, group_size=group_size, bias_N=bias_N)
    else:
        qkv = matmul_gptq_triton(
            x_TK, qweight, qzeros, scales,
            group_size=group_size, perm_idx=perm_idx, zero_offset=zero_offset, bias_N=bias_N,
        )  # fmt: skip
    return split_qkv_ragged_triton(
        qkv, k_cache, v_cache, batch, num_heads=num_heads, k_scale=k_scale, v_scale=v_scale
    )


def unfused_qkv_ragged_matmul_gguf_quantized_triton(
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
    """As `unfused_qkv_ragged_matmul_gguf_quantized`."""
    encodings = encodings_of(
        quantization_encoding_q, quantization_encoding_k, quantization_encoding_v
    )
    weights = (q_weight, k_weight, v_weight)
    widths = [weight.shape[0] for weight in weights]
    qkv = x_TK.new_empty(x_TK.shape[0], sum(widths))
    parts = zip(weights, encodings, qkv.split(widths, 1), strict=True)
    for weight, encoding, part in parts:
        dequantizing_matmul(x_TK, packed_gguf(weight, encoding), out_TN=part)
    heads = q_weight.shape[0] // k_cache.shape[3]
    return split_qkv_ragged_triton(
        qkv, k_cache, v_cache, batch, num_heads=heads, k_scale=k_scale, v_scale=v_scale
    )

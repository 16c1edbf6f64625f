"""Projection and cache write in plain torch: the definition of correct, and the CPU path."""

import torch

from quire.kernels.gguf.reference import matmul_gguf_reference
from quire.kernels.gptq_awq.reference import matmul_awq_reference, matmul_gptq_reference
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.reference import split_qkv_ragged_reference


def encodings_of(q: str, k: str | None, v: str | None) -> tuple[str, str, str]:
    """Those of keys and values are that of the queries unless given."""
    return q, q if k is None else k, q if v is None else v


def fused_qkv_ragged_matmul_quantized_reference(
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
        qkv = matmul_awq_reference(
            x_TK, qweight, qzeros, scales, group_size=group_size, bias_N=bias_N
        )
    else:
        qkv = matmul_gptq_reference(
            x_TK, qweight, qzeros, scales,
            group_size=group_size, perm_idx=perm_idx, zero_offset=zero_offset, bias_N=bias_N,
        )  # fmt: skip
    return split_qkv_ragged_reference(
        qkv, k_cache, v_cache, batch, num_heads=num_heads, k_scale=k_scale, v_scale=v_scale
    )


def unfused_qkv_ragged_matmul_gguf_quantized_reference(
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
    parts = zip((q_weight, k_weight, v_weight), encodings, strict=True)
    qkv = torch.cat([matmul_gguf_reference(x_TK, *part) for part in parts], 1)
    heads = q_weight.shape[0] // k_cache.shape[3]
    return split_qkv_ragged_reference(
        qkv, k_cache, v_cache, batch, num_heads=heads, k_scale=k_scale, v_scale=v_scale
    )

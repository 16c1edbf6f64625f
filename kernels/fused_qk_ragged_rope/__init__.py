"""Rotary embedding of queries and keys, with optional head norms, and the write into the cache."""

import torch

from quire.kernels.checks import check_tensor
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.torch_op import torch_op


def _fake(
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
) -> torch.Tensor:
    return qkv.new_empty(qkv.shape[0], num_heads, k_cache.shape[3])


@torch_op(fake=_fake, mutates=("k_cache", "v_cache"))
def fused_qk_ragged_rope(
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
) -> torch.Tensor:
    """Rotate q and k by their positions, write k and v into the pages, return q.

    The rotation pairs element i with i + D / 2 ("rotate_half", as HF Llama) in fp32. With norm
    weights, q and k first get an RMS norm per head (as HF Qwen3), its statistics in fp32.
    A token's result depends on its own row and position alone, bit for bit.

    Args:
        qkv: [T, (H + 2K) * D], each token's query heads, then key heads, then value heads;
            bfloat16, float16 or float32, contiguous.
        cos_sin: float32 [max_positions, D], cosines of D / 2 angles, then their sines.
        k_cache: [num_pages, K, page_size, D] in the dtype of qkv; written at `batch.slots`.
        v_cache: as `k_cache`.
        num_heads: H.
        q_norm: RMS norm weight [D] of the query heads, or None.
        k_norm: RMS norm weight [D] of the key heads, or None.
        epsilon: added to the mean square.

    Returns:
        q_THD [T, H, D] in the dtype of qkv.

    Raises:
        ValueError: a shape or dtype outside the above.
    """
    _check(qkv, cos_sin, k_cache, v_cache, num_heads)
    batch.check_matches("qkv", qkv)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            check_tensor(name, weight, (k_cache.shape[3],), qkv.dtype, device=qkv.device)
    if qkv.is_cuda:
        from quire.kernels.fused_qk_ragged_rope.kernel import fused_qk_ragged_rope_triton as run
    else:
        from quire.kernels.fused_qk_ragged_rope.reference import (
            fused_qk_ragged_rope_reference as run,
        )
    return run(
        qkv,
        cos_sin,
        k_cache,
        v_cache,
        batch,
        num_heads=num_heads,
        q_norm=q_norm,
        k_norm=k_norm,
        epsilon=epsilon,
    )


def _check(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
) -> None:
    _, kv_heads, _, head_dim = k_cache.shape
    if k_cache.shape != v_cache.shape or {k_cache.dtype, v_cache.dtype} != {qkv.dtype}:
        raise ValueError(
            f"k_cache and v_cache must have one shape and the dtype {qkv.dtype}, "
            f"got {tuple(k_cache.shape)} of {k_cache.dtype} and "
            f"{tuple(v_cache.shape)} of {v_cache.dtype}"
        )
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, got {head_dim}")
    if qkv.shape[1] != (num_heads + 2 * kv_heads) * head_dim:
        raise ValueError(
            f"qkv must have ({num_heads} + 2 * {kv_heads}) * {head_dim} columns, got {qkv.shape[1]}"
        )
    if cos_sin.dtype != torch.float32 or cos_sin.shape[1] != head_dim:
        raise ValueError(
            f"cos_sin must be float32 [positions, {head_dim}], "
            f"got {cos_sin.dtype} {tuple(cos_sin.shape)}"
        )
    for name, tensor in (("cos_sin", cos_sin), ("k_cache", k_cache), ("v_cache", v_cache)):
        if tensor.device != qkv.device:
            raise ValueError(f"{name} must be on {qkv.device} as qkv, got {tensor.device}")
    if not (qkv.is_contiguous() and k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("qkv, k_cache and v_cache must be contiguous")

"""Rotary embedding of queries and keys, with optional head norms, and the write into the cache.

The rotation (Su et al. 2021, https://arxiv.org/abs/2104.09864) may be of all of a head or of its
first elements (Phi, StableLM, GPT-NeoX), and of pairs as HF Llama or as HF GPT-J lays them out;
DeepSeek's are GPT-J's up to an order of elements that q and k share.
"""

from collections.abc import Callable
from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.fused_qk_ragged_rope.cpu import fused_qk_ragged_rope_cpu
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.cache_checks import check_caches
from quire.kernels.torch_op import torch_op


def _fake(qkv: torch.Tensor, k_cache: torch.Tensor, *, num_heads: int, **_: Any) -> torch.Tensor:
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
    interleaved: bool = False,
    norm_weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """Rotate q and k by their positions, write k and v into the pages, return q.

    Norms and rotation are in fp32. A token's bits depend on its own row and position alone.

    Args:
        qkv: [T, (H + 2K) * D], each token's query heads, then key heads, then value heads;
            bfloat16, float16 or float32, contiguous.
        cos_sin: float32 [max_positions, R], cosines of R / 2 angles, then their sines; the first
            R <= D elements of a head turn, the others pass.
        k_cache: [num_pages, K, page_size, D] in the dtype of qkv, or float8_e4m3fn for
            value / scale clamped to +-448; written at `batch.slots`.
        v_cache: as `k_cache`.
        num_heads: H.
        q_norm: RMS norm weight of the queries in the dtype of qkv, [D] per head (Qwen3) or
            [H * D] over all heads of a token (OLMo 2), or None.
        k_norm: the same of the keys, [D] or [K * D].
        epsilon: added to the mean square.
        interleaved: pairs are elements 2i and 2i + 1 (GPT-J), not i and i + R / 2 (Llama).
        norm_weight_offset: added to the norm weights (Gemma: 1).
        multiply_before_cast: round the norm only after the weight (Gemma, OLMo 2).
        k_scale, v_scale: what the stored is multiplied by when read; 1 unless the cache is fp8.

    Returns:
        q_THD [T, H, D] in the dtype of qkv.

    Raises:
        ValueError: a shape, dtype, device or scale outside the above.
    """
    check_tensor("qkv", qkv, ("T", "(H + 2K) * D"), FLOATS)
    check_caches(k_cache, v_cache, qkv.dtype, qkv.device, k_scale, v_scale)
    _check_widths(qkv, cos_sin, k_cache, num_heads)
    batch.check_matches("qkv", qkv)
    _check_norm("q_norm", q_norm, qkv, num_heads, k_cache.shape[3])
    _check_norm("k_norm", k_norm, qkv, k_cache.shape[1], k_cache.shape[3])
    return _path(qkv.is_cuda)(
        qkv, cos_sin, k_cache, v_cache, batch, num_heads=num_heads, q_norm=q_norm, k_norm=k_norm,
        epsilon=epsilon, interleaved=interleaved, norm_weight_offset=norm_weight_offset,
        multiply_before_cast=multiply_before_cast, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip


def _path(is_cuda: bool) -> Callable[..., torch.Tensor]:
    if not is_cuda:
        return fused_qk_ragged_rope_cpu
    from quire.kernels.fused_qk_ragged_rope.kernel import fused_qk_ragged_rope_triton

    return fused_qk_ragged_rope_triton


def _check_widths(
    qkv: torch.Tensor, cos_sin: torch.Tensor, k_cache: torch.Tensor, num_heads: int
) -> None:
    _, kv_heads, _, head_dim = k_cache.shape
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, got {head_dim}")
    if num_heads < 0 or qkv.shape[1] != (num_heads + 2 * kv_heads) * head_dim:
        raise ValueError(
            f"qkv must have ({num_heads} + 2 * {kv_heads}) * {head_dim} columns, got {qkv.shape[1]}"
        )
    check_tensor("cos_sin", cos_sin, ("positions", "R"), torch.float32, device=qkv.device)
    rotary_dim = cos_sin.shape[1]
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise ValueError(
            f"cos_sin must have an even number of columns from 2 to {head_dim}, got {rotary_dim}"
        )


def _check_norm(
    name: str, weight: torch.Tensor | None, qkv: torch.Tensor, heads: int, head_dim: int
) -> None:
    if weight is None:
        return
    check_tensor(name, weight, ("N",), qkv.dtype, device=qkv.device)
    if weight.shape[0] not in (head_dim, heads * head_dim):
        raise ValueError(
            f"{name} must be [{head_dim}] or [{heads * head_dim}], got {list(weight.shape)}"
        )

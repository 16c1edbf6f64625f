"""Causal attention of a ragged batch over paged keys and values."""

import torch

from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.torch_op import torch_op

MAX_HEAD_DIM = 256
MIN_PAGE_SIZE, MAX_PAGE_SIZE = 16, 128


def _fake(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    return torch.empty_like(q_THD)


@torch_op(fake=_fake)
def flash_attention_ragged(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Attention of each token over its context's keys up to its own position.

    A token's result is a function of its query and of its context's keys alone, bit for bit:
    batch mates, chunk cuts, page placement, and prefill or decode do not change it.

    Args:
        q_THD: queries [T, H, D], bfloat16 or float32 (float16 on a GPU only); D a multiple of 8.
        k_cache: keys [num_pages, K, page_size, D] in the dtype of q, those of this step included;
            H is a multiple of K, and query head h reads key head h // (H / K).
        v_cache: values, as `k_cache`.
        batch: where each context's tokens and pages are.
        scale: factor on the scores, usually D ** -0.5.
        sliding_window: with a window W, the token at position i reads keys j with i - j < W.

    Returns:
        out_THD [T, H, D] in the dtype of q.

    Raises:
        ValueError: a shape, dtype or window outside the above.
    """
    _check(q_THD, k_cache, v_cache, batch, sliding_window)
    if q_THD.is_cuda:
        from quire.kernels.flash_attention_ragged.kernel import flash_attention_ragged_triton

        return flash_attention_ragged_triton(
            q_THD, k_cache, v_cache, batch, scale=scale, sliding_window=sliding_window
        )
    from quire.kernels.flash_attention_ragged.cpu import flash_attention_ragged_cpu

    return flash_attention_ragged_cpu(
        q_THD, k_cache, v_cache, batch, scale=scale, sliding_window=sliding_window
    )


def _check(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    sliding_window: int | None,
) -> None:
    _, heads, head_dim = q_THD.shape
    _, kv_heads, page_size, _ = k_cache.shape
    dtypes = (torch.bfloat16, torch.float32) + ((torch.float16,) if q_THD.is_cuda else ())
    if q_THD.dtype not in dtypes or {k_cache.dtype, v_cache.dtype} != {q_THD.dtype}:
        raise ValueError(
            f"q, k_cache and v_cache must share one dtype of {dtypes} on {q_THD.device}, "
            f"got {q_THD.dtype}, {k_cache.dtype}, {v_cache.dtype}"
        )
    if k_cache.shape != v_cache.shape or k_cache.shape[3] != head_dim:
        raise ValueError(
            f"k_cache and v_cache must both be [pages, heads, page_size, {head_dim}], "
            f"got {tuple(k_cache.shape)} and {tuple(v_cache.shape)}"
        )
    if not (q_THD.is_contiguous() and k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("q, k_cache and v_cache must be contiguous")
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be a multiple of 8 up to {MAX_HEAD_DIM}, got {head_dim}")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} key heads")
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(
            f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}, "
            f"got {page_size}"
        )
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1, got {sliding_window}")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.device != q_THD.device:
            raise ValueError(f"{name} must be on {q_THD.device} as q, got {cache.device}")
    batch.check_matches("q_THD", q_THD)

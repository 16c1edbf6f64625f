"""Causal attention of a ragged batch over paged keys and values."""

import math
from typing import Any

import torch

from quire.kernels.checks import are_alike, check_tensor
from quire.kernels.flash_attention_ragged.cpu import flash_attention_ragged_cpu
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.torch_op import torch_op

MAX_HEAD_DIM = 256
MIN_PAGE_SIZE, MAX_PAGE_SIZE = 16, 128


def _plan_fake(batch: RaggedBatch, *, sliding_window: int | None = None) -> torch.Tensor:
    return batch.cache_lengths.new_empty(batch.num_decode + 1)


@torch_op(fake=_plan_fake)
def plan_decode(batch: RaggedBatch, *, sliding_window: int | None = None) -> torch.Tensor:
    """The work list of a step's decode rows, for all layers with this window.

    It is made on the device of the batch. Only a GPU reads it; elsewhere it is not needed.

    Args:
        batch: where each context's tokens and pages are.
        sliding_window: that of the layers, as in `flash_attention_ragged`.

    Returns:
        int32 [num_decode + 1]: how many splits (512 keys, cut at multiples of that) the decode
        contexts before each one attend to; the last entry is the number of all.

    Raises:
        ValueError: a window below 1.
    """
    _check_numbers(sliding_window, None, 1.0, 1.0)
    if batch.cache_lengths.is_cuda:
        from quire.kernels.flash_attention_ragged.kernel import plan_decode_triton as run
    else:
        from quire.kernels.flash_attention_ragged.reference import plan_decode_reference as run
    return run(batch, sliding_window=sliding_window)


def _fake(q_THD: torch.Tensor, **_: Any) -> torch.Tensor:
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
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    decode_plan: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each token over its context's keys up to its own position.

    softmax(mask(cap(scale * q k^T))) v, where cap(x) = soft_cap * tanh(x / soft_cap) as in Gemma 2
    (https://arxiv.org/abs/2408.00118), and a sink is one more logit of the softmax, without a
    value, as in gpt-oss (https://arxiv.org/abs/2508.10925). A token's result is a function of its
    query and of its context's keys alone, bit for bit: batch mates, chunk cuts, page placement,
    and prefill or decode do not change it.

    Args:
        q_THD: queries [T, H, D], bfloat16 or float32 (float16 on a GPU only); D % 8 == 0, D <= 256.
        k_cache: keys [num_pages, K, page_size, D] in the dtype of q or float8_e4m3fn, those of
            this step included; H is a multiple of K, and query head h reads key head h // (H / K).
        v_cache: values, as `k_cache`.
        batch: where each context's tokens and pages are. On a GPU grids and scratch memory follow
            from its host values alone: a captured graph of decode rows serves any later step
            whose contexts have no more splits of 512 keys in all.
        scale: factor on the scores, usually D ** -0.5.
        sliding_window: with a window W, the token at position i reads keys j with i - j < W. Pages
            that end before the window of a context's first token are not read: any page, whatever
            it holds, may stand there in the table.
        soft_cap: the limit of scores.
        sinks: float32 [H].
        k_scale: key = stored * k_scale; `v_scale` likewise.
        decode_plan: what `plan_decode` gives for this batch and window; made here if None.

    Returns:
        out_THD [T, H, D] in the dtype of q.

    Raises:
        ValueError: a shape, dtype, device or number outside the above.
    """
    _check_tensors(q_THD, k_cache, v_cache, batch, sinks, decode_plan)
    _check_numbers(sliding_window, soft_cap, k_scale, v_scale)
    options: dict[str, Any] = {"scale": scale, "sliding_window": sliding_window}
    options |= {"soft_cap": soft_cap, "sinks": sinks, "k_scale": k_scale, "v_scale": v_scale}
    if q_THD.is_cuda:
        from quire.kernels.flash_attention_ragged.kernel import flash_attention_ragged_triton

        options["decode_plan"] = decode_plan
        return flash_attention_ragged_triton(q_THD, k_cache, v_cache, batch, **options)
    return flash_attention_ragged_cpu(q_THD, k_cache, v_cache, batch, **options)


def _check_numbers(
    sliding_window: int | None, soft_cap: float | None, k_scale: float, v_scale: float
) -> None:
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1, got {sliding_window}")
    for name, number in (("soft_cap", soft_cap), ("k_scale", k_scale), ("v_scale", v_scale)):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name} must be a number above 0, got {number}")


def _check_tensors(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    sinks: torch.Tensor | None,
    decode_plan: torch.Tensor | None,
) -> None:
    dtypes = (torch.bfloat16, torch.float32) + ((torch.float16,) if q_THD.is_cuda else ())
    check_tensor("q_THD", q_THD, ("T", "H", "D"), dtypes)
    _, heads, head_dim = q_THD.shape
    if k_cache.dtype != v_cache.dtype or k_cache.dtype not in (q_THD.dtype, torch.float8_e4m3fn):
        raise ValueError(
            f"q_THD, k_cache and v_cache must share one dtype, or both caches be float8_e4m3fn, "
            f"got {q_THD.dtype}, {k_cache.dtype}, {v_cache.dtype}"
        )
    if k_cache.shape != v_cache.shape or k_cache.ndim != 4 or k_cache.shape[3] != head_dim:
        raise ValueError(
            f"k_cache and v_cache must both be [pages, heads, page_size, {head_dim}], "
            f"got {list(k_cache.shape)} and {list(v_cache.shape)}"
        )
    if not are_alike(q_THD, k_cache, v_cache):
        for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
            shape = ("pages", "heads", "page_size", head_dim)
            check_tensor(name, cache, shape, k_cache.dtype, device=q_THD.device)
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be a multiple of 8 up to {MAX_HEAD_DIM}, got {head_dim}")
    _, kv_heads, page_size, _ = k_cache.shape
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} key heads")
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(
            f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}, "
            f"got {page_size}"
        )
    batch.check_matches("q_THD", q_THD)
    if sinks is not None:
        check_tensor("sinks", sinks, (heads,), torch.float32, device=q_THD.device)
    if decode_plan is not None:
        plan_shape = (batch.num_decode + 1,)
        check_tensor("decode_plan", decode_plan, plan_shape, torch.int32, device=q_THD.device)

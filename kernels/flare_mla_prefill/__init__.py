"""Multi-head latent attention over decompressed keys and values, in chunks of a fixed buffer.

The way of a step: `flare_mla_prefill_plan` cuts the keys of all contexts into chunks, then for each
chunk `flare_mla_decompress_k_cache` fills the buffer (a matmul of W_UK, and one of W_UV) and
`flare_mla_prefill_ragged` continues the softmax of every query over the chunk's keys.

This is `flare_mla_decode_ragged` in algebra but not in bits, as decompressed keys and values are
rounded, and sums over keys are cut where chunks are. Fewer products per pair of query and key make
it the faster one for long prompts. Where bits must not depend on scheduling, all rows of a context
must go one way: the absorbed one, which is exact.
"""

from collections.abc import Callable
from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_range, check_tensor
from quire.kernels.flash_attention_gpu import check_head_dim
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.torch_op import torch_op

MAX_LATENT_DIM = 1024


def _plan_fake(
    batch: RaggedBatch, buffer_size: int, max_chunks: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    contexts = batch.cache_lengths.shape[0]
    return (
        batch.cache_lengths.new_empty(max_chunks, contexts + 1),
        batch.cache_lengths.new_empty(max_chunks, contexts),
        batch.cache_lengths.new_empty(max_chunks),
    )


@torch_op(fake=_plan_fake)
def flare_mla_prefill_plan(
    batch: RaggedBatch, buffer_size: int, max_chunks: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut the keys of all contexts, laid end to end, into chunks of `buffer_size`.

    A context has its cached keys and those of its new tokens. The plan is computed on the device
    of the batch, from its device tensors, so a captured graph serves later steps; keys beyond
    `max_chunks` chunks, which only the host's lengths can show, would then be in no chunk.

    Args:
        batch: the step.
        buffer_size: rows of the buffer for decompressed keys, at least 1.
        max_chunks: rows of the plan, at least 1. Chunks that are not needed have length 0.

    Returns:
        buffer_row_offsets int32 [max_chunks, B + 1], the buffer rows of each context in each chunk;
        cache_offsets int32 [max_chunks, B], the position of the first of those keys in its
        context; buffer_lengths int32 [max_chunks], rows in use.

    Raises:
        ValueError: a number below 1, or more keys than max_chunks * buffer_size.
    """
    check_range("buffer_size", buffer_size, 1, 2**31 - 1)
    check_range("max_chunks", max_chunks, 1, 2**16)
    keys = sum(batch.kv_lengths)
    if keys > buffer_size * max_chunks:
        raise ValueError(
            f"max_chunks must be at least {-(-keys // buffer_size)} for {keys} keys "
            f"in a buffer of {buffer_size}, got {max_chunks}"
        )
    if batch.cache_lengths.is_cuda:
        from quire.kernels.flare_mla_prefill.kernel import flare_mla_prefill_plan_triton as run
    else:
        from quire.kernels.flare_mla_prefill.reference import (
            flare_mla_prefill_plan_reference as run,
        )
    return run(batch, buffer_size, max_chunks)


def _decompress_fake(weight: torch.Tensor, buffer_size: int, **_: Any) -> torch.Tensor:
    return weight.new_empty(buffer_size, weight.shape[0])


@torch_op(fake=_decompress_fake)
def flare_mla_decompress_k_cache(
    latent_cache: torch.Tensor,
    lookup_table: torch.Tensor,
    buffer_row_offsets_1d: torch.Tensor,
    cache_offsets_1d: torch.Tensor,
    buffer_length: torch.Tensor,
    weight: torch.Tensor,
    buffer_size: int,
) -> torch.Tensor:
    """Keys (or values) of one chunk of the plan: its latents times a projection.

    Args:
        latent_cache: [num_pages, page_size, W], bfloat16, float16 or float32, contiguous.
        lookup_table: int32 [B, P], that of the batch.
        buffer_row_offsets_1d: int32 [B + 1], a row of the plan.
        cache_offsets_1d: int32 [B], a row of the plan.
        buffer_length: int32 [1], an entry of the plan, kept on the device.
        weight: [N, L] in the dtype of the cache; the first L <= W columns of a latent are read. For
            DeepSeek's kv_b_proj, L is kv_lora_rank and N = heads * (nope + v).
        buffer_size: rows of the result, at least 1.

    Returns:
        [buffer_size, N]. Rows past `buffer_length` are zero (for a finite weight).

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("latent_cache", latent_cache, ("P", "page_size", "W"), FLOATS)
    device = latent_cache.device
    check_tensor("lookup_table", lookup_table, ("B", "P"), torch.int32, device=device)
    contexts = lookup_table.shape[0]
    _check_chunk(
        contexts,
        device,
        buffer_row_offsets_1d=buffer_row_offsets_1d,
        cache_offsets_1d=cache_offsets_1d,
    )
    check_tensor("buffer_length", buffer_length, (1,), torch.int32, device=device)
    check_tensor("weight", weight, ("N", "L"), latent_cache.dtype, device=device)
    most = min(latent_cache.shape[2], MAX_LATENT_DIM)
    check_range("columns of weight", weight.shape[1], 1, most)
    check_range("rows of lookup_table", contexts, 1, 2**31 - 1)
    check_range("buffer_size", buffer_size, 1, 2**31 - 1)
    if latent_cache.is_cuda:
        from quire.kernels.flare_mla_prefill.kernel import (
            flare_mla_decompress_k_cache_triton as run,
        )
    else:
        from quire.kernels.flare_mla_prefill.reference import (
            flare_mla_decompress_k_cache_reference as run,
        )
    return run(
        latent_cache,
        lookup_table,
        buffer_row_offsets_1d,
        cache_offsets_1d,
        buffer_length,
        weight,
        buffer_size,
    )


def _check_chunk(contexts: int, device: torch.device, **tensors: torch.Tensor) -> None:
    """Check one chunk of a plan: its buffer row offsets, then its cache offsets."""
    for (name, tensor), entries in zip(tensors.items(), (contexts + 1, contexts), strict=True):
        check_tensor(name, tensor, (entries,), torch.int32, device=device)


def _prefill_fake(
    q: torch.Tensor, v: torch.Tensor, output_dtype: torch.dtype | None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads = q.shape[:2]
    return (
        q.new_empty(tokens, heads, v.shape[2], dtype=output_dtype or q.dtype),
        q.new_empty(tokens, heads, 2, dtype=torch.float32),
    )


@torch_op(fake=_prefill_fake)
def flare_mla_prefill_ragged(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: RaggedBatch,
    buffer_row_offsets: torch.Tensor,
    cache_offsets: torch.Tensor,
    *,
    scale: float,
    latent_cache: torch.Tensor | None = None,
    qk_rope_dim: int = 64,
    prev_output: torch.Tensor | None = None,
    prev_softmax_info: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of all tokens over the keys of one chunk, continuing earlier chunks.

    Chained over the chunks of a plan, in any order, it is attention over all keys, as the softmax
    of each row is carried along (https://arxiv.org/abs/2112.05682). It is not bit for bit what
    `flare_mla_decode_ragged` gives: see the module.

    Args:
        q: [T, H, D], bfloat16, float16 or float32, contiguous; D = nope + rope, a multiple of 8
            up to 256.
        k: [buffer_size, H, D] in the dtype of q, or without the last `qk_rope_dim` columns if
            there is a `latent_cache`; its last stride is 1, so it may be a view.
        v: [buffer_size, H, V] as k; V a multiple of 8 up to 256.
        batch: where each context's tokens are, and the pages of `latent_cache`.
        buffer_row_offsets: int32 [B + 1], rows of k and v of each context: a row of the plan.
        cache_offsets: int32 [B], position of the first of them: a row of the plan.
        scale: factor on the scores, usually D ** -0.5.
        latent_cache: [num_pages, page_size, W] in the dtype of q, whose last `qk_rope_dim` columns
            are the end of every head's key.
        qk_rope_dim: used with `latent_cache` only.
        prev_output: output over earlier chunks, [T, H, V] of any of the dtypes.
        prev_softmax_info: softmax info of those chunks; both or neither.
        output_dtype: that of q by default; float32 before the last chunk rounds once, not often.

    Returns:
        output [T, H, V] over all chunks so far, zeros where a token has seen no key; softmax info
        float32 [T, H, 2]: the greatest score times log2(e), and the sum of exp(score - greatest).

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check_heads(q, k, v, latent_cache, qk_rope_dim)
    _check_step(q, batch, buffer_row_offsets, cache_offsets)
    _check_state(q, v, prev_output, prev_softmax_info, output_dtype)
    return _implementation(q.is_cuda)(
        q, k, v, batch, buffer_row_offsets, cache_offsets,
        scale=scale, latent_cache=latent_cache, qk_rope_dim=qk_rope_dim, prev_output=prev_output,
        prev_softmax_info=prev_softmax_info, output_dtype=output_dtype,
    )  # fmt: skip


def _implementation(is_cuda: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    if is_cuda:
        from quire.kernels.flare_mla_prefill.kernel import flare_mla_prefill_ragged_triton as run
    else:
        from quire.kernels.flare_mla_prefill.reference import (
            flare_mla_prefill_ragged_reference as run,
        )
    return run


def _check_step(
    q: torch.Tensor,
    batch: RaggedBatch,
    buffer_row_offsets: torch.Tensor,
    cache_offsets: torch.Tensor,
) -> None:
    batch.check_matches("q", q)
    _check_chunk(
        len(batch.query_lengths),
        q.device,
        buffer_row_offsets=buffer_row_offsets,
        cache_offsets=cache_offsets,
    )


def _check_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    latent_cache: torch.Tensor | None,
    qk_rope_dim: int,
) -> None:
    check_tensor("q", q, ("T", "H", "D"), FLOATS)
    device, (_, heads, head_dim) = q.device, q.shape
    check_head_dim("head_dim of q", head_dim)
    key_dim = head_dim
    if latent_cache is not None:
        check_tensor("latent_cache", latent_cache, ("P", "page_size", "W"), q.dtype, device=device)
        check_head_dim("qk_rope_dim", qk_rope_dim, min(head_dim - 8, latent_cache.shape[2]))
        key_dim -= qk_rope_dim
    check_tensor("k", k, ("rows", heads, key_dim), q.dtype, device=device, contiguous=False)
    check_tensor("v", v, (k.shape[0], heads, "V"), q.dtype, device=device, contiguous=False)
    check_head_dim("head_dim of v", v.shape[2])
    for name, tensor in (("k", k), ("v", v)):
        if tensor.stride(2) != 1:
            raise ValueError(f"{name} must have last stride 1, got {list(tensor.stride())}")


def _check_state(
    q: torch.Tensor,
    v: torch.Tensor,
    prev_output: torch.Tensor | None,
    prev_softmax_info: torch.Tensor | None,
    output_dtype: torch.dtype | None,
) -> None:
    if output_dtype not in (None, *FLOATS):
        raise ValueError(f"output_dtype must be one of {FLOATS}, got {output_dtype}")
    tokens, heads, _ = q.shape
    if (prev_output is None) != (prev_softmax_info is None):
        raise ValueError("prev_output and prev_softmax_info must be given together, got one")
    if prev_output is not None and prev_softmax_info is not None:
        check_tensor(
            "prev_output", prev_output, (tokens, heads, v.shape[2]), FLOATS, device=q.device
        )
        check_tensor(
            "prev_softmax_info",
            prev_softmax_info,
            (tokens, heads, 2),
            torch.float32,
            device=q.device,
        )

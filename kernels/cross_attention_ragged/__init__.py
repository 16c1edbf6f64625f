"""Attention of a ragged batch over the paged keys of another sequence."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.flash_attention_gpu import check_head_dim, check_heads, check_window
from quire.kernels.torch_op import torch_op


def _fake(q_THD: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.empty_like(q_THD)


@torch_op(fake=_fake)
def cross_attention_ragged(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    input_row_offsets: torch.Tensor,
    kv_lengths: torch.Tensor,
    lookup_table: torch.Tensor,
    *,
    scale: float,
    local_window_size: int = -1,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each token over all keys of its context's other sequence: no causal mask.

    The other sequence (an encoder's states, an image's patches) has pages of its own, so it comes
    as lengths and pages, and not as the RaggedBatch of the queries. Softmax and sums are in fp32.
    A token's bits depend on its query, its position if there is a window, and the keys alone.
    A token that sees no key gets zeros.

    Args:
        q_THD: queries [T, H, D], bfloat16, float16 or float32, contiguous; D a multiple of 8 up to
            256.
        k_cache: keys [num_pages, K, page_size, D] in the dtype of q; H is a multiple of K, and
            query head h reads key head h // (H / K).
        v_cache: values, as `k_cache`.
        input_row_offsets: int32 [B + 1], where each context's tokens start in q; from 0 to T.
        kv_lengths: int32 [B], keys of each context's other sequence.
        lookup_table: int32 [B, P], page ids of the other sequences in order, padded with any id.
        scale: factor on the scores, usually D ** -0.5.
        local_window_size: with a window W, a token sees only keys j with |position - j| < W; -1:
            all keys.
        positions: int32 [T], which key each token stands at; required with a window.

    Returns:
        [T, H, D] in the dtype of q.

    Raises:
        ValueError: a shape, dtype, device or window outside the above.
    """
    _check_cache(q_THD, k_cache, v_cache)
    _check_sequences(q_THD, input_row_offsets, kv_lengths, lookup_table)
    _check_window(q_THD, local_window_size, positions)
    if q_THD.is_cuda:
        from quire.kernels.cross_attention_ragged.kernel import cross_attention_ragged_triton as run
    else:
        from quire.kernels.cross_attention_ragged.reference import (
            cross_attention_ragged_reference as run,
        )
    return run(
        q_THD, k_cache, v_cache, input_row_offsets, kv_lengths, lookup_table,
        scale=scale, local_window_size=local_window_size, positions=positions,
    )  # fmt: skip


def _check_cache(q_THD: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
    check_tensor("q_THD", q_THD, ("T", "H", "D"), FLOATS)
    device, (_, heads, head_dim) = q_THD.device, q_THD.shape
    shape = ("pages", "K", "page_size", head_dim)
    check_tensor("k_cache", k_cache, shape, q_THD.dtype, device=device)
    check_tensor("v_cache", v_cache, k_cache.shape, q_THD.dtype, device=device)
    check_head_dim("head_dim of q_THD", head_dim)
    check_heads(heads, k_cache.shape[1])


def _check_sequences(
    q_THD: torch.Tensor,
    input_row_offsets: torch.Tensor,
    kv_lengths: torch.Tensor,
    lookup_table: torch.Tensor,
) -> None:
    device, tokens = q_THD.device, q_THD.shape[0]
    check_tensor("input_row_offsets", input_row_offsets, ("B + 1",), torch.int32, device=device)
    contexts = input_row_offsets.shape[0] - 1
    check_tensor("kv_lengths", kv_lengths, (contexts,), torch.int32, device=device)
    check_tensor("lookup_table", lookup_table, (contexts, "P"), torch.int32, device=device)
    if tokens and not contexts:
        raise ValueError(
            f"input_row_offsets must have a context for the {tokens} rows of q_THD, got [1]"
        )


def _check_window(
    q_THD: torch.Tensor, local_window_size: int, positions: torch.Tensor | None
) -> None:
    check_window(local_window_size)
    if positions is not None:
        check_tensor("positions", positions, q_THD.shape[:1], torch.int32, device=q_THD.device)
    elif local_window_size != -1:
        raise ValueError(
            f"positions must be given with local_window_size {local_window_size}, got None"
        )

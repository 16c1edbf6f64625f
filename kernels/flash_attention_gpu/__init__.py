"""Attention over dense batches: encoders, vision towers and anything without a paged cache."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_range, check_tensor
from quire.kernels.torch_op import torch_op

MAX_HEAD_DIM = 256
MASKS = ("causal", "none")


def check_head_dim(name: str, head_dim: int, most: int = MAX_HEAD_DIM) -> None:
    """Raise ValueError unless a head has a multiple of 8 columns, `most` at most."""
    if head_dim % 8 or not 8 <= head_dim <= most:
        raise ValueError(f"{name} must be a multiple of 8 from 8 to {most}, got {head_dim}")


def check_heads(heads: int, kv_heads: int) -> None:
    """Raise ValueError unless query heads share key heads evenly."""
    if not kv_heads or not heads or heads % kv_heads:
        raise ValueError(f"query heads must be a multiple of {kv_heads} key heads, got {heads}")


def check_window(local_window_size: int) -> None:
    """Raise ValueError unless the window is at least 1, or -1 for none."""
    if local_window_size != -1:
        check_range("local_window_size", local_window_size, 1, 2**30)


def _fake(q: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.empty_like(q)


@torch_op(fake=_fake)
def flash_attention_gpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: str = "causal",
    scale: float,
    local_window_size: int = -1,
    valid_length: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(mask(scale * q k^T)) v of each batch entry (https://arxiv.org/abs/2205.14135).

    An entry's bits depend on that entry alone, and not on what lies past its valid length.
    Softmax and sums are in fp32. Tensors on a CPU are computed in plain torch.

    Args:
        q: [B, S, H, D], bfloat16, float16 or float32, contiguous; D a multiple of 8 up to 256.
        k: [B, S, K, D] as q; H is a multiple of K, and query head h reads key head h // (H / K).
        v: as k.
        mask: "causal": token i reads tokens j <= i; "none": every token.
        scale: factor on the scores, usually D ** -0.5.
        local_window_size: with a window W, token i reads only tokens j with |i - j| < W; -1: all.
        valid_length: int32 or uint32 [B], tokens of each entry that exist, or None for S. Later
            tokens are not read, and their rows of the result are zero.

    Returns:
        [B, S, H, D] in the dtype of q.

    Raises:
        ValueError: a shape, dtype, device, mask or window outside the above.
    """
    check_tensor("q", q, ("B", "S", "H", "D"), FLOATS)
    entries, length, heads, head_dim = q.shape
    check_tensor("k", k, (entries, length, "K", head_dim), q.dtype, device=q.device)
    check_tensor("v", v, k.shape, q.dtype, device=q.device)
    check_head_dim("head_dim of q", head_dim)
    check_heads(heads, k.shape[2])
    check_window(local_window_size)
    if mask not in MASKS:
        raise ValueError(f"mask must be one of {MASKS}, got {mask!r}")
    if valid_length is not None:
        check_tensor(
            "valid_length", valid_length, (entries,), (torch.int32, torch.uint32), device=q.device
        )
    if q.is_cuda:
        from quire.kernels.flash_attention_gpu.kernel import flash_attention_gpu_triton as run
    else:
        from quire.kernels.flash_attention_gpu.reference import flash_attention_gpu_reference as run
    return run(
        q,
        k,
        v,
        mask=mask,
        scale=scale,
        local_window_size=local_window_size,
        valid_length=valid_length,
    )

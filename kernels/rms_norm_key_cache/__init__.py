"""RMS norm, in the cache, of the keys that a step wrote."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.torch_op import torch_op


def _fake(**_: Any) -> None:
    return None


@torch_op(fake=_fake, mutates=("k_cache",))
def rms_norm_key_cache(
    k_cache: torch.Tensor,
    gamma: torch.Tensor,
    epsilon: float,
    batch: RaggedBatch,
    *,
    weight_offset: float = 0.0,
    rms_norm_cols: int | None = None,
    multiply_before_cast: bool = True,
    per_head_norm: bool = True,
) -> None:
    """Normalize the keys at `batch.slots` in place: key * (mean(key^2) + epsilon)^-0.5 * weight.

    Per head, the mean is over the head and gamma is as long as a head; otherwise both are of all
    heads of a token. With a shorter gamma only that many leading elements are normalized, of each
    head or of the heads end to end, and the others stay as they are; `rms_norm_cols` must then
    confirm it. Statistics are in fp32; a token's bits depend on its own key alone.

    Args:
        k_cache: [num_pages, K, page_size, D], bfloat16, float16 or float32, contiguous. An fp8
            cache would round its keys a second time and is refused.
        gamma: the norm's weight in the dtype of the cache, [D], [K * D] or [rms_norm_cols].
        epsilon: added to the mean square.
        weight_offset: added to gamma (Gemma: 1).
        rms_norm_cols: the length of gamma, where that is not the whole of what it normalizes.
        multiply_before_cast: round to the dtype of the cache only after the weight (Gemma,
            OLMo 2), not also before it (Llama, Qwen3).
        per_head_norm: whether each head has a norm of its own.

    Raises:
        ValueError: a shape, dtype or device outside the above, or a gamma of another length that
            `rms_norm_cols` does not confirm.
    """
    check_tensor("k_cache", k_cache, ("pages", "K", "page_size", "D"), FLOATS)
    check_tensor("gamma", gamma, ("N",), k_cache.dtype, device=k_cache.device)
    _, kv_heads, _, head_dim = k_cache.shape
    whole = head_dim if per_head_norm else kv_heads * head_dim
    columns = whole if rms_norm_cols is None else rms_norm_cols
    if not 0 < columns <= whole:
        raise ValueError(f"rms_norm_cols must be from 1 to {whole}, got {columns}")
    if gamma.shape[0] != columns:
        raise ValueError(
            f"gamma must be [{columns}], got [{gamma.shape[0]}]; "
            "rms_norm_cols confirms a norm of fewer elements"
        )
    if batch.slots.device != k_cache.device:
        raise ValueError(
            f"k_cache must be on {batch.slots.device} as the batch, got {k_cache.device}"
        )
    if k_cache.is_cuda:
        from quire.kernels.rms_norm_key_cache.kernel import rms_norm_key_cache_triton as run
    else:
        from quire.kernels.rms_norm_key_cache.reference import rms_norm_key_cache_reference as run
    run(
        k_cache, gamma, epsilon, batch, weight_offset=weight_offset, rms_norm_cols=rms_norm_cols,
        multiply_before_cast=multiply_before_cast, per_head_norm=per_head_norm,
    )  # fmt: skip

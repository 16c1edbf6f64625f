"""What precedes multi-head latent attention: its queries and the latents that a step caches."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.torch_op import torch_op


def _fake(absorbed_THL: torch.Tensor, cos_sin: torch.Tensor, **_: Any) -> torch.Tensor:
    tokens, heads, latent_dim = absorbed_THL.shape
    return absorbed_THL.new_empty(tokens, heads, latent_dim + cos_sin.shape[1])


@torch_op(fake=_fake, mutates=("latent_cache",))
def fused_latent_ragged_rope(
    q_THD: torch.Tensor,
    absorbed_THL: torch.Tensor,
    kv_TD: torch.Tensor,
    kv_norm: torch.Tensor,
    cos_sin: torch.Tensor,
    latent_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    epsilon: float = 1e-6,
    interleaved: bool = False,
) -> torch.Tensor:
    """Rotate queries and the key they share, normalize latents, write both into the pages.

    Before `flare_mla_decode_ragged` (DeepSeek-V2, https://arxiv.org/abs/2405.04434). Norm and
    rotation are in fp32, rounded as `rms_norm` and `fused_qk_ragged_rope` do. A token's bits
    depend on its own rows and position alone.

    Args:
        q_THD: queries [T, H, N + R] before absorption, bfloat16, float16 or float32, contiguous;
            only their last R elements, which turn, are read.
        absorbed_THL: W_UK^T q_nope [T, H, L] in the dtype of q; the tokens and heads may lie in
            either order.
        kv_TD: [T, L + R], each token's latent, then its key, in the dtype of q, contiguous.
        kv_norm: [L], weight of the latent's RMS norm, in the dtype of q.
        cos_sin: float32 [max_positions, R], cosines of R / 2 angles, then their sines.
        latent_cache: [num_pages, page_size, L + R] in the dtype of q; written at `batch.slots`.
        batch: where each token is.
        epsilon: added to the mean square of the latent.
        interleaved: pairs are elements 2i and 2i + 1 (DeepSeek), not i and i + R / 2.

    Returns:
        [T, H, L + R]: absorbed queries, then what turned, in the dtype of q, contiguous.

    Raises:
        ValueError: a shape, stride, dtype or device outside the above.
    """
    _check(q_THD, absorbed_THL, kv_TD, kv_norm, cos_sin, latent_cache)
    batch.check_matches("q_THD", q_THD)
    if q_THD.is_cuda:
        from quire.kernels.fused_latent_ragged_rope.kernel import (
            fused_latent_ragged_rope_triton as run,
        )
    else:
        from quire.kernels.fused_latent_ragged_rope.reference import (
            fused_latent_ragged_rope_reference as run,
        )
    return run(
        q_THD, absorbed_THL, kv_TD, kv_norm, cos_sin, latent_cache, batch,
        epsilon=epsilon, interleaved=interleaved,
    )  # fmt: skip


def _check(
    q_THD: torch.Tensor,
    absorbed_THL: torch.Tensor,
    kv_TD: torch.Tensor,
    kv_norm: torch.Tensor,
    cos_sin: torch.Tensor,
    latent_cache: torch.Tensor,
) -> None:
    check_tensor("q_THD", q_THD, ("T", "H", "N + R"), FLOATS)
    tokens, heads, head_dim = q_THD.shape
    dtype, device = q_THD.dtype, q_THD.device
    check_tensor(
        "absorbed_THL", absorbed_THL, (tokens, heads, "L"), dtype, device=device, contiguous=False
    )
    if absorbed_THL.stride(2) != 1:
        raise ValueError(
            f"the columns of absorbed_THL must be contiguous, got strides {absorbed_THL.stride()}"
        )
    check_tensor("cos_sin", cos_sin, ("positions", "R"), torch.float32, device=device)
    latent_dim, rope_dim = absorbed_THL.shape[2], cos_sin.shape[1]
    if rope_dim % 2 or not 0 < rope_dim <= head_dim or not latent_dim:
        raise ValueError(
            f"cos_sin must have an even number of columns from 2 to {head_dim} and absorbed_THL "
            f"at least one, got {rope_dim} and {latent_dim}"
        )
    width = latent_dim + rope_dim
    check_tensor("kv_TD", kv_TD, (tokens, width), dtype, device=device)
    check_tensor("kv_norm", kv_norm, (latent_dim,), dtype, device=device)
    check_tensor("latent_cache", latent_cache, ("P", "page_size", width), dtype, device=device)

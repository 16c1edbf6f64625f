"""Multi-head latent attention over the latents themselves, without decompressing them."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.torch_op import torch_op

MAX_LATENT_DIM = 512
MAX_FLOAT32_LATENT_DIM = 256
"""On a GPU, whose registers hold no more."""
MAX_ROPE_DIM = 128


def _check_widths(q_THD: torch.Tensor, qk_rope_dim: int) -> None:
    is_limited = q_THD.is_cuda and q_THD.dtype == torch.float32
    widths = (
        ("qk_rope_dim", qk_rope_dim, MAX_ROPE_DIM),
        (
            "the width of q_THD less qk_rope_dim",
            q_THD.shape[2] - qk_rope_dim,
            MAX_FLOAT32_LATENT_DIM if is_limited else MAX_LATENT_DIM,
        ),
    )
    for name, value, most in widths:
        if value % 8 or not 8 <= value <= most:
            raise ValueError(f"{name} must be a multiple of 8 from 8 to {most}, got {value}")


def _fake(q_THD: torch.Tensor, qk_rope_dim: int, **_: Any) -> torch.Tensor:
    tokens, heads, width = q_THD.shape
    return q_THD.new_empty(tokens, heads, width - qk_rope_dim)


@torch_op(fake=_fake)
def flare_mla_decode_ragged(
    q_THD: torch.Tensor,
    latent_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    qk_rope_dim: int = 64,
    decode_plan: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of each token over its context's latents, for any number of tokens.

    Multi-head latent attention of DeepSeek-V2 (https://arxiv.org/abs/2405.04434) with the key and
    value projections absorbed: a query head holds W_UK^T q_nope, then q_rope; a latent row holds
    c_KV, then k_rope, and serves all heads as key and, by its c_KV, as value. The caller multiplies
    the result by W_UV.

    A token's result is a function of its query and of its context's latents alone, bit for bit:
    batch mates, chunk cuts, page placement, and one token or many do not change it.
    `flare_mla_prefill_ragged` is equal in algebra, not in bits: it rounds decompressed keys and
    values. Where bits must not depend on scheduling, all rows of a context must go one way. This
    one is the exact default.

    Args:
        q_THD: absorbed queries [T, H, L + R], bfloat16, float16 or float32, contiguous; L a multiple
            of 8 up to 512 (float32 on a GPU: 256), R = qk_rope_dim one up to 128.
        latent_cache: [num_pages, page_size, L + R] in the dtype of q, latents of this step included.
        batch: where each context's tokens and pages are.
        scale: factor on the scores, (nope + rope) ** -0.5 of the head before absorption.
        qk_rope_dim: R, the last columns, which are in the scores and not in the result.
        decode_plan: `plan_decode(batch)` of flash_attention_ragged, to share it among layers; by
            default it is made here. Only a GPU reads it.

    Returns:
        [T, H, L] in the dtype of q.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("q_THD", q_THD, ("T", "H", "L + R"), FLOATS)
    device, width = q_THD.device, q_THD.shape[2]
    check_tensor(
        "latent_cache", latent_cache, ("P", "page_size", width), q_THD.dtype, device=device
    )
    _check_widths(q_THD, qk_rope_dim)
    batch.check_matches("q_THD", q_THD)
    if decode_plan is not None:
        check_tensor(
            "decode_plan", decode_plan, (batch.num_decode + 1,), torch.int32, device=device
        )
    if q_THD.is_cuda:
        from quire.kernels.flare_mla_decode_ragged.kernel import (
            flare_mla_decode_ragged_triton as run,
        )
    else:
        from quire.kernels.flare_mla_decode_ragged.cpu import flare_mla_decode_ragged_cpu as run
    return run(
        q_THD, latent_cache, batch, scale=scale, qk_rope_dim=qk_rope_dim, decode_plan=decode_plan
    )

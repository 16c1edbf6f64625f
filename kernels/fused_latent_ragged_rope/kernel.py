"""Triton: queries put together, and the latent row of each token, in one launch."""

import torch
import triton
import triton.language as tl

from quire.kernels.ragged_batch import RaggedBatch

BLOCK_H = 4


@triton.jit
def turn(source, target, angle, is_row, ROPE_DIM: tl.constexpr, INTERLEAVED: tl.constexpr,
         HALF_PADDED: tl.constexpr):  # fmt: skip
    """Rotate R elements at each of the pointers `source`; `angle` has cosines, then sines."""
    pair = tl.arange(0, HALF_PADDED)
    is_pair = pair < ROPE_DIM // 2
    cos = tl.load(angle + pair, mask=is_pair, other=0.0)[None, :]
    sin = tl.load(angle + ROPE_DIM // 2 + pair, mask=is_pair, other=0.0)[None, :]
    first = 2 * pair if INTERLEAVED else pair
    distance: tl.constexpr = 1 if INTERLEAVED else ROPE_DIM // 2
    mask = is_row[:, None] & is_pair[None, :]
    at = source[:, None] + first[None, :]
    one = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(at + distance, mask=mask, other=0.0).to(tl.float32)
    dtype: tl.constexpr = target.dtype.element_ty
    to = target[:, None] + first[None, :]
    tl.store(to, (one * cos - other * sin).to(dtype), mask=mask)
    tl.store(to + distance, (other * cos + one * sin).to(dtype), mask=mask)


@triton.jit(do_not_specialize=["token_stride", "head_stride"])
def latent_rope_kernel(
    q,
    absorbed,
    token_stride,
    head_stride,
    kv,
    kv_norm,
    cos_sin,
    out,
    latents,
    positions,
    slots,
    epsilon,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LATENT_DIM: tl.constexpr,
    LATENT_PADDED: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Grid (tokens, 1 + groups of BLOCK_H heads): first what is cached, then the queries."""
    token = tl.program_id(0).to(tl.int64)
    width: tl.constexpr = LATENT_DIM + ROPE_DIM
    angle = cos_sin + tl.load(positions + token).to(tl.int64) * ROPE_DIM
    column = tl.arange(0, LATENT_PADDED)
    is_column = column < LATENT_DIM
    dtype: tl.constexpr = out.dtype.element_ty
    if tl.program_id(1) == 0:
        value = tl.load(kv + token * width + column, mask=is_column, other=0.0).to(tl.float32)
        inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, 0) / LATENT_DIM + epsilon)
        weight = tl.load(kv_norm + column, mask=is_column, other=0.0).to(tl.float32)
        normed = ((value * inverse).to(dtype).to(tl.float32) * weight).to(dtype)
        row = tl.load(slots + token) * width
        tl.store(latents + row + column, normed, mask=is_column)
        one = tl.zeros([1], tl.int64)
        turn(
            kv + token * width + LATENT_DIM + one, latents + row + LATENT_DIM + one, angle,
            one == 0, ROPE_DIM, INTERLEAVED, HALF_PADDED,
        )  # fmt: skip
    else:
        head = (tl.program_id(1) - 1) * BLOCK_H + tl.arange(0, BLOCK_H)
        is_head = head < HEADS
        mask = is_head[:, None] & is_column[None, :]
        source = absorbed + token * token_stride + head.to(tl.int64) * head_stride
        target = out + (token * HEADS + head) * width
        tile = tl.load(source[:, None] + column[None, :], mask=mask, other=0.0)
        tl.store(target[:, None] + column[None, :], tile, mask=mask)
        turn(
            q + (token * HEADS + head) * HEAD_DIM + HEAD_DIM - ROPE_DIM, target + LATENT_DIM, angle,
            is_head, ROPE_DIM, INTERLEAVED, HALF_PADDED,
        )  # fmt: skip


def fused_latent_ragged_rope_triton(
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
    """As `fused_latent_ragged_rope`."""
    tokens, heads, head_dim = q_THD.shape
    latent_dim, rope_dim = absorbed_THL.shape[2], cos_sin.shape[1]
    out = q_THD.new_empty(tokens, heads, latent_dim + rope_dim)
    if not tokens:
        return out
    latent_rope_kernel[(tokens, 1 + triton.cdiv(heads, BLOCK_H))](
        q_THD,
        absorbed_THL,
        absorbed_THL.stride(0),
        absorbed_THL.stride(1),
        kv_TD,
        kv_norm,
        cos_sin,
        out,
        latent_cache,
        batch.positions,
        batch.slots,
        epsilon,
        HEADS=heads,
        HEAD_DIM=head_dim,
        LATENT_DIM=latent_dim,
        LATENT_PADDED=triton.next_power_of_2(latent_dim),
        ROPE_DIM=rope_dim,
        HALF_PADDED=triton.next_power_of_2(rope_dim // 2),
        INTERLEAVED=interleaved,
        BLOCK_H=BLOCK_H,
        num_warps=4,
        # The rotation must round as the reference does: no fused multiply-add.
        enable_fp_fusion=False,
    )
    return out

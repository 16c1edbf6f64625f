"""Triton: the weighted sum over experts, one program per token and block of columns."""

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def moe_combine_kernel(
    expert_out, restore_token_order, weights, out, columns, top_k, BLOCK: tl.constexpr
):
    """Grid (tokens, blocks of columns)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in range(top_k):
        place = tl.load(restore_token_order + token * top_k + slot).to(tl.int64)
        weight = tl.load(weights + token * top_k + slot)
        value = tl.load(expert_out + place * columns + column, mask=mask, other=0.0)
        total += weight * value.to(tl.float32)
    tl.store(out + token * columns + column, total.to(out.dtype.element_ty), mask=mask)


def moe_combine_triton(
    expert_out: torch.Tensor, restore_token_order: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """As `moe_combine`."""
    (tokens, top_k), columns = weights.shape, expert_out.shape[1]
    out = expert_out.new_empty(tokens, columns)
    if out.numel():
        moe_combine_kernel[(tokens, triton.cdiv(columns, BLOCK))](
            expert_out,
            restore_token_order,
            weights,
            out,
            columns,
            top_k,
            BLOCK=BLOCK,
            num_warps=4,
        )
    return out

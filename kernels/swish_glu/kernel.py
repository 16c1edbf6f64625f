"""Triton: silu(gate) * up, one program per row and block of columns."""

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def swish_glu_kernel(gate_up, out, features, BLOCK: tl.constexpr):
    """Grid (rows, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < features
    source = gate_up + row * 2 * features + column
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + features, mask=mask, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * features + column, result.to(out.dtype.element_ty), mask=mask)


def swish_glu_triton(gate_up_T2F: torch.Tensor) -> torch.Tensor:
    """As `swish_glu`."""
    rows, features = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    out = gate_up_T2F.new_empty(rows, features)
    if rows:
        grid = (rows, triton.cdiv(features, BLOCK))
        swish_glu_kernel[grid](gate_up_T2F, out, features, BLOCK=BLOCK, num_warps=4)
    return out

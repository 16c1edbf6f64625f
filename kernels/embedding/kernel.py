"""Triton: gather of embedding rows, one program per token and block of columns."""

import torch
import triton
import triton.language as tl

BLOCK = 2048


@triton.jit
def embedding_kernel(
    tokens, weight, out, vocab_start, vocabulary, scale, columns, BLOCK: tl.constexpr
):
    """Grid (tokens, blocks of columns). Rows of another part of the table are zeros."""
    row = tl.program_id(0).to(tl.int64)
    local = tl.load(tokens + row).to(tl.int64) - vocab_start
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_here = (local >= 0) & (local < vocabulary) & (column < columns)
    value = tl.load(weight + local * columns + column, mask=is_here, other=0.0).to(tl.float32)
    result = tl.where(is_here, value * scale, 0.0).to(out.dtype.element_ty)
    tl.store(out + row * columns + column, result, mask=column < columns)


def embedding_triton(
    tokens_T: torch.Tensor, weight_VC: torch.Tensor, *, scale: float = 1.0
) -> torch.Tensor:
    """As `embedding`."""
    return vocab_parallel_embedding_triton(tokens_T, weight_VC, 0, scale=scale)


def vocab_parallel_embedding_triton(
    tokens_T: torch.Tensor, weight_VC: torch.Tensor, vocab_start: int, *, scale: float = 1.0
) -> torch.Tensor:
    """As `vocab_parallel_embedding`."""
    count, (vocabulary, columns) = len(tokens_T), weight_VC.shape
    out = weight_VC.new_empty(count, columns)
    if out.numel():
        block = min(triton.next_power_of_2(columns), BLOCK)
        embedding_kernel[(count, triton.cdiv(columns, block))](
            tokens_T,
            weight_VC,
            out,
            vocab_start,
            vocabulary,
            float(scale),
            columns,
            BLOCK=block,
            num_warps=4,
        )
    return out

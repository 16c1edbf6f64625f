"""Triton: dense layer with one tile shape and one order over K whatever the number of rows."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

NARROW_FEATURES = 8192
"""Below this many output features a narrower tile keeps more processors busy."""
GROUP_ROWS = 8


@triton.jit
def linear_kernel(
    x,
    weight,
    bias,
    out,
    rows,
    out_features,
    in_features,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Grid (row tiles * column tiles,), in groups of GROUP row tiles that share weights in L2."""
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BLOCK_M)
    column_tiles = tl.cdiv(out_features, BLOCK_N)
    first = program // (GROUP * column_tiles) * GROUP
    group = tl.minimum(row_tiles - first, GROUP)
    within = program % (GROUP * column_tiles)
    row = (first + within % group) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = within // group * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = (row < rows)[:, None]
    is_column = column < out_features

    step = tl.arange(0, BLOCK_K)
    x_tile = x + row.to(tl.int64)[:, None] * in_features + step[None, :]
    weight_tile = weight + column.to(tl.int64)[None, :] * in_features + step[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, in_features, BLOCK_K):
        inside = step < in_features - start
        left = tl.load(x_tile + start, mask=is_row & inside[None, :], other=0.0)
        right = tl.load(weight_tile + start, mask=is_column[None, :] & inside[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    target = out + row.to(tl.int64)[:, None] * out_features + column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=is_row & is_column[None, :])


def tile_shape(dtype: torch.dtype, out_features: int) -> tuple[int, int, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K: by dtype and width, never by the number of rows."""
    if dtype == torch.float32:
        return 32, 64, 32
    return 64, 64 if out_features < NARROW_FEATURES else 128, 64


def linear_triton(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b for contiguous x and weight."""
    rows, in_features = x_TK.shape
    out_features = weight_NK.shape[0]
    out = x_TK.new_empty(rows, out_features)
    block_m, block_n, block_k = tile_shape(x_TK.dtype, out_features)
    if rows:
        linear_kernel[(triton.cdiv(rows, block_m) * triton.cdiv(out_features, block_n),)](
            x_TK,
            weight_NK,
            weight_NK if bias_N is None else bias_N,
            out,
            rows,
            out_features,
            in_features,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            GROUP=GROUP_ROWS,
            HAS_BIAS=bias_N is not None,
            num_warps=4,
            num_stages=4 if x_TK.dtype != torch.float32 else 3,
        )
    return out


def linear_triton_with(
    weight_NK: torch.Tensor, bias_N: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    weight_NK = weight_NK.contiguous()
    return lambda x_TK: linear_triton(x_TK.contiguous(), weight_NK, bias_N)

"""Triton: dense layer whose rows have the same bits in every tile that it may be cut into.

A large tile serves many rows, a low and narrow one few: decode reads every weight once, so what
counts there is bytes in flight on all processors. The number of rows chooses the tile, yet a
row's bits do not depend on it, because all tiles of a dtype share what rounds:

- Every output element is one fp32 accumulator, started at zero, to which products are added in
  ascending order of K; K is never split among programs, nor among accumulators.
- 16-bit inputs go through one family of instructions, which add 16 products at a time: on sm_90
  wgmma m64nNk16, as every tile has rows in multiples of 64 and warps in multiples of 4 (a lower
  tile would fall back to mma.sync, whose sums may round otherwise); on sm_80 mma.sync m16n8k16.
  N says how many columns one instruction covers, not how one of them is summed.
- float32 has no tensor core of its precision: each thread multiplies and adds one product after
  the other (`input_precision="ieee"`).
- A tile's depth cuts K into loads, at multiples of 16. Past the end of K zeros are added, which
  changes no sum. The bias is added to the finished sum.
"""

import torch
import triton
import triton.language as tl

from quire.kernels.linear.tiles import Tile, choose_tile

TILES_16_BIT = (
    Tile(128, 256, 64, warps=8, stages=3),
    Tile(128, 128, 64, warps=8, stages=4),
    Tile(64, 128, 64, warps=4, stages=4),
    Tile(64, 64, 64, warps=4, stages=6),
    Tile(64, 32, 128, warps=4, stages=6),
    Tile(64, 16, 128, warps=4, stages=5),
)
TILES_32_BIT = (
    Tile(32, 64, 32, warps=4, stages=3),
    Tile(16, 32, 64, warps=4, stages=5),
)


@triton.jit
def tile_of(program, rows, out_features, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row and column tile of a program, in groups of row tiles that share weights in L2."""
    GROUP: tl.constexpr = 8
    row_tiles = tl.cdiv(rows, BLOCK_M)
    column_tiles = tl.cdiv(out_features, BLOCK_N)
    first = program // (GROUP * column_tiles) * GROUP
    group = tl.minimum(row_tiles - first, GROUP)
    within = program % (GROUP * column_tiles)
    return first + within % group, within // group


@triton.jit(do_not_specialize=["rows"])
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
    HAS_BIAS: tl.constexpr,
):
    """Grid (row tiles * column tiles,)."""
    row_tile, column_tile = tile_of(tl.program_id(0), rows, out_features, BLOCK_M, BLOCK_N)
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
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


def linear_triton(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b for contiguous x and weight."""
    tiles = TILES_32_BIT if x_TK.dtype == torch.float32 else TILES_16_BIT
    tile, stages = choose_tile(tiles, x_TK.shape[0], weight_NK.shape[0], weight_NK)
    return linear_in_tiles(x_TK, weight_NK, bias_N, tile, stages)


def linear_in_tiles(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    tile: Tile,
    stages: int,
) -> torch.Tensor:
    """As `linear_triton`, in tiles of the caller's choice."""
    rows, in_features = x_TK.shape
    out_features = weight_NK.shape[0]
    out = x_TK.new_empty(rows, out_features)
    if rows:
        linear_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(out_features, tile.columns),)](
            x_TK,
            weight_NK,
            weight_NK if bias_N is None else bias_N,
            out,
            rows,
            out_features,
            in_features,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            BLOCK_K=tile.depth,
            HAS_BIAS=bias_N is not None,
            num_warps=tile.warps,
            num_stages=stages,
        )
    return out

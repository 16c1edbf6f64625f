"""Triton: rows to int8, and products of int8 summed in int32, the same in every tile."""

import torch
import triton
import triton.language as tl

from quire.kernels.linear.kernel import tile_of
from quire.kernels.linear.tiles import Tile, choose_tile

TILES = (
    Tile(128, 128, 128, warps=8, stages=4),
    Tile(64, 128, 128, warps=4, stages=4),
    Tile(64, 64, 128, warps=4, stages=6),
    Tile(64, 32, 128, warps=4, stages=8),
)
BLOCK = 4096


@triton.jit
def quantize_kernel(x, out, scales, columns, BLOCK: tl.constexpr):
    """Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    greatest = tl.zeros((BLOCK,), dtype=tl.float32)
    is_finite = tl.full((BLOCK,), 1, dtype=tl.int32)
    for start in range(0, columns, BLOCK):
        mask = column < columns - start
        value = tl.load(x + row * columns + start + column, mask=mask, other=0.0).to(tl.float32)
        size = tl.abs(value)
        is_finite &= (size < float("inf")).to(tl.int32)
        greatest = tl.maximum(greatest, size)
    # 2^-126, the smallest normal: a quotient by it is finite, and zeros stay zeros.
    scale = tl.maximum(tl.div_rn(tl.max(greatest, 0), 127.0), 2.0**-126)
    all_finite = tl.min(is_finite, 0) == 1
    tl.store(scales + row, tl.where(all_finite, scale, float("nan")))
    divisor = tl.where(all_finite, scale, 1.0)
    for start in range(0, columns, BLOCK):
        mask = column < columns - start
        value = tl.load(x + row * columns + start + column, mask=mask, other=0.0).to(tl.float32)
        # To 1.5 * 2^23 only whole numbers can be added, by rounding to nearest even.
        magic = 12582912.0
        number = tl.div_rn(tl.where(all_finite, value, 0.0), divisor) + magic - magic
        tl.store(out + row * columns + start + column, number.to(tl.int8), mask=mask)


def quantize_rows_int8_triton(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `quantize_rows_int8`."""
    rows, columns = x_TK.shape
    out = torch.empty_like(x_TK, dtype=torch.int8)
    scales = x_TK.new_empty(rows, 1, dtype=torch.float32)
    block = min(triton.next_power_of_2(columns), BLOCK)
    if rows:
        quantize_kernel[(rows,)](
            x_TK, out, scales, columns, BLOCK=block, num_warps=min(max(block // 512, 1), 8)
        )
    return out, scales


@triton.jit(do_not_specialize=["rows"])
def matmul_kernel(
    x,
    weight,
    x_scale,
    weight_scale,
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
    row = (row_tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = row < rows
    is_column = column < out_features

    step = tl.arange(0, BLOCK_K)
    x_tile = x + row[:, None] * in_features + step[None, :]
    weight_tile = weight + column.to(tl.int64)[None, :] * in_features + step[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, in_features, BLOCK_K):
        inside = step < in_features - start
        left = tl.load(x_tile + start, mask=is_row[:, None] & inside[None, :], other=0)
        right = tl.load(weight_tile + start, mask=is_column[None, :] & inside[:, None], other=0)
        sums = tl.dot(left, right, sums, out_dtype=tl.int32)
    total = sums.to(tl.float32) * tl.load(x_scale + row, mask=is_row, other=0.0)[:, None]
    total *= tl.load(weight_scale + column, mask=is_column, other=0.0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    target = out + row[:, None] * out_features + column[None, :]
    mask = is_row[:, None] & is_column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


def matmul_w8a8_triton(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N1: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_w8a8`."""
    rows, in_features = x_TK.shape
    out_features = len(weight_NK)
    out = x_TK.new_empty(rows, out_features)
    if out.numel() == 0:
        return out
    numbers, scales = quantize_rows_int8_triton(x_TK)
    tile, stages = choose_tile(TILES, rows, out_features, weight_NK)
    matmul_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(out_features, tile.columns),)](
        numbers,
        weight_NK,
        scales,
        scale_N1,
        out if bias_N is None else bias_N,
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
        enable_fp_fusion=False,
    )
    return out

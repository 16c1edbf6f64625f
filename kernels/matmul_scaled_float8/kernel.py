"""Triton: scaled fp8 matmul whose rows have the same bits in every tile that it may be cut into.

What `linear`'s kernel says of its tiles holds here with fp8's instructions (on sm_90 wgmma
m64nNk32, on sm_89 mma.sync m16n8k32). In addition, wgmma keeps fewer bits than fp32 while it
accumulates fp8 (DeepSeek 2024, https://arxiv.org/abs/2412.19437, section 3.5.2), so there sums
over 128 columns, the depth of every tile, start at zero and are added to an fp32 total one after
the other. With block scales that is so everywhere, and each sum is multiplied by its scale on the
way, by an explicit fused multiply-add; contraction by the compiler, which might differ between
tiles, is off.
"""

import torch
import triton
import triton.language as tl

from quire.kernels.float8 import SCALE_BLOCK, are_block_scales
from quire.kernels.linear.kernel import tile_of
from quire.kernels.linear.tiles import Tile, choose_tile

TILES = (
    Tile(128, 128, SCALE_BLOCK, warps=8, stages=4),
    Tile(64, 128, SCALE_BLOCK, warps=4, stages=4),
    Tile(64, 64, SCALE_BLOCK, warps=4, stages=6),
    Tile(64, 32, SCALE_BLOCK, warps=4, stages=8),
    Tile(64, 16, SCALE_BLOCK, warps=4, stages=8),
)


@triton.jit(do_not_specialize=["rows", "a_scale_stride"])
def scaled_matmul_kernel(
    a,
    b,
    a_scales,
    b_scales,
    bias,
    out,
    rows,
    out_features,
    in_features,
    a_scale_stride,
    b_scale_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    HAS_BLOCK_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Grid (row tiles * column tiles,); strides between the scales of rows."""
    row_tile, column_tile = tile_of(tl.program_id(0), rows, out_features, BLOCK_M, BLOCK_N)
    row = (row_tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = row < rows
    is_column = column < out_features

    step = tl.arange(0, SCALE_BLOCK)
    a_tile = a + row[:, None] * in_features + step[None, :]
    b_tile = b + column.to(tl.int64)[None, :] * in_features + step[:, None]
    # A column tile lies within one block of b's rows: its width divides SCALE_BLOCK.
    b_block = column_tile * BLOCK_N // SCALE_BLOCK * b_scale_stride
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, in_features, SCALE_BLOCK):
        inside = step < in_features - start
        left = tl.load(a_tile + start, mask=is_row[:, None] & inside[None, :], other=0.0)
        right = tl.load(b_tile + start, mask=is_column[None, :] & inside[:, None], other=0.0)
        if HAS_BLOCK_SCALES:
            block = start // SCALE_BLOCK
            scale = tl.load(a_scales + row * a_scale_stride + block, mask=is_row, other=0.0)
            scale *= tl.load(b_scales + b_block + block)
            scales = tl.broadcast_to(scale[:, None], (BLOCK_M, BLOCK_N))
            total = tl.fma(tl.dot(left, right), scales, total)
        else:
            total = tl.dot(left, right, total, max_num_imprecise_acc=SCALE_BLOCK)
    if not HAS_BLOCK_SCALES:
        total *= tl.load(a_scales + row * a_scale_stride, mask=is_row, other=0.0)[:, None]
        total *= tl.load(b_scales + column * b_scale_stride, mask=is_column, other=0.0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    target = out + row[:, None] * out_features + column[None, :]
    mask = is_row[:, None] & is_column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


def dynamic_scaled_matmul_triton(
    a_MK: torch.Tensor,
    b_NK: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    *,
    out_type: torch.dtype = torch.bfloat16,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `dynamic_scaled_matmul`."""
    tile = choose_tile(TILES, a_MK.shape[0], b_NK.shape[0], b_NK)
    out = a_MK.new_empty(a_MK.shape[0], b_NK.shape[0], dtype=out_type)
    scaled_matmul_in_tiles(out, (a_MK, a_scales), (b_NK, b_scales), bias_N, tile)
    return out


def scaled_matmul_in_tiles(
    out: torch.Tensor,
    left: tuple[torch.Tensor, torch.Tensor],
    right: tuple[torch.Tensor, torch.Tensor],
    bias_N: torch.Tensor | None,
    tile_and_stages: tuple[Tile, int],
) -> None:
    """Write the product of `left` and `right`, each (stored, scales), in tiles of that shape."""
    (a_MK, a_scales), (b_NK, b_scales) = left, right
    rows, in_features = a_MK.shape
    out_features = b_NK.shape[0]
    tile, stages = tile_and_stages
    has_block_scales = are_block_scales(b_NK, b_scales)
    if rows == 0 or out_features == 0:
        return
    scaled_matmul_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(out_features, tile.columns),)](
        a_MK,
        b_NK,
        a_scales,
        b_scales,
        out if bias_N is None else bias_N,
        out,
        rows,
        out_features,
        in_features,
        row_stride(a_scales, has_block_scales),
        row_stride(b_scales, has_block_scales),
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        SCALE_BLOCK=tile.depth,
        HAS_BLOCK_SCALES=has_block_scales,
        HAS_BIAS=bias_N is not None,
        num_warps=tile.warps,
        num_stages=stages,
        enable_fp_fusion=False,
    )


def row_stride(scales: torch.Tensor, has_block_scales: bool) -> int:
    """Elements between the scales of two rows: 0 where one number serves all."""
    if scales.numel() == 1:
        return 0
    return scales.shape[1] if has_block_scales else 1


def matmul_static_scaled_float8_triton(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    input_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    out_type: torch.dtype = torch.bfloat16,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_static_scaled_float8`."""
    return dynamic_scaled_matmul_triton(
        x_TK, weight_NK, input_scale, weight_scale, out_type=out_type, bias_N=bias_N
    )

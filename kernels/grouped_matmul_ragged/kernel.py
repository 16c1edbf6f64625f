"""Triton: matmuls of groups with one tile shape and one order over K whatever the groups."""

import torch
import triton
import triton.language as tl

from quire.kernels.float8 import SCALE_BLOCK, scale_blocks
from quire.kernels.triton_helpers import e4m3_values

GROUP_ROWS = 8


@triton.jit
def segment_of_slot(starts, segments, slot, BLOCK_M: tl.constexpr):
    """The segment whose row tiles hold tile number `slot`.

    Segment s has the slots from starts[s] // BLOCK_M + s on, which are enough for its rows and
    leave at most one idle; so a search finds it, and no list of tiles has to be made.
    """
    low = 0
    high = segments
    while high - low > 1:
        middle = (low + high) // 2
        is_before = tl.load(starts + middle) // BLOCK_M + middle <= slot
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    return low


@triton.jit
def add_product(total, x_tile, weight, mask, scale, IS_FP8: tl.constexpr, IS_BLOCKED: tl.constexpr):
    """total + x W^T of one step over K; `scale` points at the step's scales if IS_BLOCKED."""
    stored = tl.load(weight, mask=mask, other=0)
    if IS_FP8:
        stored = e4m3_values(stored, x_tile.dtype)
    if IS_BLOCKED:
        return total + tl.dot(x_tile, stored, input_precision="ieee") * tl.load(scale)[None, :]
    return tl.dot(x_tile, stored, total, input_precision="ieee")


@triton.jit(do_not_specialize=["rows"])
def grouped_matmul_kernel(
    x,
    weight,
    scale,
    bias,
    order,
    starts,
    expert_ids,
    out,
    rows,
    groups,
    features,
    in_features,
    top_k,
    alpha,
    limit,
    up_offset,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
):
    """Grid (slots * column tiles,), in groups of GROUP slots; `features` are those of `out`.

    SCALE_ROWS outputs share a scale, 0: no scales; SCALE_COLUMNS inputs do, 0: all of them.
    """
    program = tl.program_id(0)
    slots = rows // BLOCK_M + tl.minimum(groups + 1, rows)
    column_tiles = tl.cdiv(features, BLOCK_N)
    first_slot = program // (GROUP * column_tiles) * GROUP
    width = tl.minimum(slots - first_slot, GROUP)
    within = program % (GROUP * column_tiles)
    slot = first_slot + within % width
    column = within // width * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < features

    segment = segment_of_slot(starts, groups + 1, slot, BLOCK_M)
    start = tl.load(starts + segment)
    end = tl.load(starts + segment + 1, mask=segment < groups, other=rows)
    first_row = start + (slot - start // BLOCK_M - segment) * BLOCK_M
    if first_row >= end:
        return
    row = first_row + tl.arange(0, BLOCK_M)
    is_row = row < end
    target = out + row.to(tl.int64)[:, None] * features + column[None, :]
    is_target = is_row[:, None] & is_column[None, :]
    expert = tl.load(expert_ids + segment, mask=segment < groups, other=-1)
    if expert < 0:
        tl.store(target, tl.zeros((BLOCK_M, BLOCK_N), out.dtype.element_ty), mask=is_target)
        return

    source = row
    if HAS_ORDER:
        source = tl.load(order + row, mask=is_row, other=0) // top_k
    weight_row = column
    other_row = column
    weight_rows = features
    if IS_GATED:
        weight_rows = 2 * features
        if IS_INTERLEAVED:
            weight_row = 2 * column
            other_row = weight_row + 1
        else:
            other_row = column + features
    matrix = weight + expert.to(tl.int64) * weight_rows * in_features
    step = tl.arange(0, BLOCK_K)
    x_tile = x + source.to(tl.int64)[:, None] * in_features + step[None, :]
    tile = matrix + weight_row.to(tl.int64)[None, :] * in_features + step[:, None]
    other_tile = matrix + other_row.to(tl.int64)[None, :] * in_features + step[:, None]
    IS_FP8: tl.constexpr = SCALE_ROWS > 0
    IS_BLOCKED: tl.constexpr = SCALE_COLUMNS > 0
    steps_per_row = 1
    if IS_BLOCKED:
        steps_per_row = tl.cdiv(in_features, SCALE_COLUMNS)
    tile_scale = scale
    other_scale = scale
    if IS_FP8:
        scale += expert.to(tl.int64) * tl.cdiv(weight_rows, SCALE_ROWS) * steps_per_row
        # Clamped, so that the last tile needs no mask.
        last = weight_rows - 1
        tile_scale = scale + tl.minimum(weight_row, last) // SCALE_ROWS * steps_per_row
        other_scale = scale + tl.minimum(other_row, last) // SCALE_ROWS * steps_per_row

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    other = total
    for k in range(0, in_features, BLOCK_K):
        is_inside = step < in_features - k
        values = tl.load(x_tile + k, mask=is_row[:, None] & is_inside[None, :], other=0.0)
        mask = is_column[None, :] & is_inside[:, None]
        block = 0
        if IS_BLOCKED:
            block = k // SCALE_COLUMNS
        total = add_product(total, values, tile + k, mask, tile_scale + block, IS_FP8, IS_BLOCKED)
        if IS_GATED:
            other = add_product(
                other, values, other_tile + k, mask, other_scale + block, IS_FP8, IS_BLOCKED
            )

    if IS_FP8 and not IS_BLOCKED:
        total *= tl.load(tile_scale)[None, :]
        if IS_GATED:
            other *= tl.load(other_scale)[None, :]
    if HAS_BIAS:
        bias += expert.to(tl.int64) * weight_rows
        total += tl.load(bias + weight_row, mask=is_column, other=0.0).to(tl.float32)[None, :]
        if IS_GATED:
            other += tl.load(bias + other_row, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if IS_GATED:
        if HAS_LIMIT:
            total = tl.minimum(total, limit)
            other = tl.minimum(tl.maximum(other, -limit), limit)
        total = total / (1.0 + tl.exp(-alpha * total)) * (other + up_offset)
    tl.store(target, total.to(out.dtype.element_ty), mask=is_target)


def tile_shape(dtype: torch.dtype, is_gated: bool) -> tuple[int, int, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K: never by the number of rows."""
    if dtype == torch.float32:
        return 32, 32 if is_gated else 64, 32
    return 64, 64, 64


def grouped_matmul_ragged_triton(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    expert_start_indices: torch.Tensor,
    expert_ids: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    token_expert_order: torch.Tensor | None = None,
    top_k: int = 1,
) -> torch.Tensor:
    """As `grouped_matmul_ragged`."""
    return _launch(
        hidden_states,
        weight,
        (expert_start_indices, expert_ids),
        (bias, weight_scale, token_expert_order),
        top_k=top_k,
        is_gated=False,
    )


def grouped_matmul_swiglu_ragged_triton(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    expert_start_indices: torch.Tensor,
    expert_ids: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    token_expert_order: torch.Tensor | None = None,
    top_k: int = 1,
    interleaved: bool = False,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    """As `grouped_matmul_swiglu_ragged`."""
    return _launch(
        hidden_states,
        weight,
        (expert_start_indices, expert_ids),
        (bias, weight_scale, token_expert_order),
        top_k=top_k,
        is_gated=True,
        interleaved=interleaved,
        gate=(alpha, limit, up_offset),
    )


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    groups: tuple[torch.Tensor, torch.Tensor],
    optional: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    *,
    top_k: int,
    is_gated: bool,
    interleaved: bool = False,
    gate: tuple[float, float | None, float] = (1.0, None, 0.0),
) -> torch.Tensor:
    (starts, expert_ids), (bias, weight_scale, order) = groups, optional
    rows = (x if order is None else order).shape[0]
    experts, weight_rows, in_features = weight.shape
    features = weight_rows // 2 if is_gated else weight_rows
    out = x.new_empty(rows, features)
    if not rows:
        return out
    alpha, limit, up_offset = gate
    scale_rows = scale_columns = 0
    if weight_scale is not None:
        scale_rows, scale_columns = scale_blocks(weight, weight_scale)
        scale_columns = scale_columns if scale_columns == SCALE_BLOCK else 0
        weight = weight.view(torch.uint8)
    block_m, block_n, block_k = tile_shape(x.dtype, is_gated)
    # Groups with rows come first, so that few rows need few slots.
    slots = rows // block_m + min(experts + 1, rows)
    grouped_matmul_kernel[(slots * triton.cdiv(features, block_n),)](
        x,
        weight,
        weight if weight_scale is None else weight_scale,
        x if bias is None else bias,
        starts if order is None else order,
        starts,
        expert_ids,
        out,
        rows,
        experts,
        features,
        in_features,
        top_k,
        float(alpha),
        0.0 if limit is None else float(limit),
        float(up_offset),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        GROUP=GROUP_ROWS,
        IS_GATED=is_gated,
        IS_INTERLEAVED=interleaved,
        HAS_LIMIT=limit is not None,
        HAS_BIAS=bias is not None,
        HAS_ORDER=order is not None,
        SCALE_ROWS=scale_rows,
        SCALE_COLUMNS=scale_columns,
        # Two accumulators and weights on their way from fp8 do not fit into four warps' registers.
        num_warps=8 if is_gated and scale_rows else 4,
        num_stages=3,
    )
    return out

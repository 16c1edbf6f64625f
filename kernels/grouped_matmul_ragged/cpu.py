"""Matmuls of groups on a CPU: tiles whose rows are summed alike, so that a row keeps its bits."""

from functools import lru_cache, partial

import torch
import torch.nn.functional as F

from quire.kernels.grouped_matmul_ragged.reference import (
    Multiply,
    gate_and_up,
    gated,
    gathered,
    groups_of,
    products,
    wide_weight,
)
from quire.kernels.linear.cpu import in_row_counts
from quire.kernels.linear.tile_plan import BASE_ROWS, cancelling_inputs
from quire.kernels.native import library
from quire.kernels.native.mixture_ops import gate_native
from quire.kernels.native.row_ops import is_native

MIN_FEATURES = 16
LADDER = (1, 2, 4, 8, 16, BASE_ROWS, 128)


def grouped_matmul_ragged_cpu(
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
    x = gathered(hidden_states, token_expert_order, top_k)
    groups = groups_of(expert_start_indices, expert_ids)
    multiply = tiled_multiply(weight, weight_scale)
    return products(x, groups, multiply, bias, weight.shape[1]).to(x.dtype)


def grouped_matmul_swiglu_ragged_cpu(
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
    x = gathered(hidden_states, token_expert_order, top_k)
    groups = groups_of(expert_start_indices, expert_ids)
    multiply = tiled_multiply(weight, weight_scale)
    gate, up = gate_and_up(products(x, groups, multiply, bias, weight.shape[1]), interleaved)
    return gated(gate, up, alpha, limit, up_offset).to(x.dtype)


def gated_cpu(
    gate_up_M2F: torch.Tensor,
    interleaved: bool,
    alpha: float,
    limit: float | None,
    up_offset: float,
) -> torch.Tensor:
    """The gate of `grouped_matmul_swiglu_ragged` on rounded products, rounded once: [M, F]."""
    native = library()
    if native is not None and is_native(gate_up_M2F):
        return gate_native(native, gate_up_M2F, interleaved, alpha, limit, up_offset)
    gate, up = gate_and_up(gate_up_M2F.float(), interleaved)
    return gated(gate, up, alpha, limit, up_offset).to(gate_up_M2F.dtype)


def tiled_multiply(weight: torch.Tensor, weight_scale: torch.Tensor | None) -> Multiply:
    """In the dtype of x, or in float32 where weights have scales."""

    def multiply(x: torch.Tensor, expert: int) -> torch.Tensor:
        if weight_scale is None:
            matrix = weight[expert]
        else:
            x, matrix = x.float(), wide_weight(weight, weight_scale, expert)
        return exact_linear(x, matrix).float()

    return multiply


def exact_linear(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """x W^T in tiles of numbers of rows that are summed alike, so that a row keeps its bits.

    Narrow matrices get rows of zeros: MKL's float32 sums differ by a row's place in the tile where
    N < 10 and K is no multiple of 4 (probed with `cancelling_inputs`, N 1..70, K 2..4096).
    """
    features, in_features = matrix.shape
    if features < MIN_FEATURES:
        matrix = F.pad(matrix, (0, 0, 0, MIN_FEATURES - features))
    counts = row_counts(len(matrix), in_features, matrix.dtype, torch.get_num_threads())
    apply = in_row_counts(partial(F.linear, weight=matrix), len(matrix), counts)
    return apply(x)[:, :features]


@lru_cache(maxsize=64)
def row_counts(
    out_features: int, in_features: int, dtype: torch.dtype, threads: int
) -> tuple[int, ...]:
    """The numbers of rows whose sums have the bits of BASE_ROWS rows, as `tile_plan` probes them.

    For weights that are not prepacked, as those of many experts would cost too much to be. On
    Sapphire Rapids, torch 2.13: 4 and more rows in float32, 2 and more in bfloat16, often 1.
    """
    x, matrix = cancelling_inputs(LADDER[-1], out_features, in_features, dtype)
    base = torch.cat([F.linear(tile, matrix) for tile in torch.split(x, BASE_ROWS)])
    return tuple(
        rows
        for rows in LADDER
        if rows == BASE_ROWS or torch.equal(F.linear(x[-rows:], matrix), base[-rows:])
    )

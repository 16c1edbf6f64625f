"""Matmuls of groups in plain torch: the definition of correct."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F

from quire.kernels.float8 import scale_blocks

Multiply = Callable[[torch.Tensor, int], torch.Tensor]
"""(rows of x, expert) to those rows times the expert's matrix."""


def grouped_matmul_ragged_reference(
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
    multiply = wide_multiply(weight, weight_scale)
    return products(x, groups, multiply, bias, weight.shape[1]).to(x.dtype)


def grouped_matmul_swiglu_ragged_reference(
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
    multiply = wide_multiply(weight, weight_scale)
    gate, up = gate_and_up(products(x, groups, multiply, bias, weight.shape[1]), interleaved)
    return gated(gate, up, alpha, limit, up_offset).to(x.dtype)


def gathered(
    hidden_states: torch.Tensor, token_expert_order: torch.Tensor | None, top_k: int
) -> torch.Tensor:
    """The rows of x in grouped order."""
    if token_expert_order is None:
        return hidden_states
    return hidden_states[token_expert_order // top_k]


def groups_of(
    expert_start_indices: torch.Tensor, expert_ids: torch.Tensor
) -> Iterator[tuple[int, slice]]:
    """(expert, rows) of each group that has an expert and rows."""
    starts = expert_start_indices.tolist()
    for expert, (start, end) in zip(expert_ids.tolist(), pairwise(starts), strict=True):
        if expert >= 0 and start < end:
            yield expert, slice(start, end)


def products(
    x: torch.Tensor,
    groups: Iterator[tuple[int, slice]],
    multiply: Multiply,
    bias: torch.Tensor | None,
    features: int,
) -> torch.Tensor:
    """float32 [M, N]: each group times its matrix plus its bias; zero for rows of no expert."""
    out = x.new_zeros(x.shape[0], features, dtype=torch.float32)
    for expert, rows in groups:
        out[rows] = multiply(x[rows], expert)
        if bias is not None:
            out[rows] += bias[expert].float()
    return out


def wide_multiply(weight: torch.Tensor, weight_scale: torch.Tensor | None) -> Multiply:
    return lambda x, expert: F.linear(x.float(), wide_weight(weight, weight_scale, expert))


def wide_weight(
    weight: torch.Tensor, weight_scale: torch.Tensor | None, expert: int
) -> torch.Tensor:
    """One expert's matrix in float32, its scales applied."""
    wide = weight[expert].float()
    if weight_scale is None:
        return wide
    rows, columns = scale_blocks(weight, weight_scale)
    scale = weight_scale[expert].repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return wide * scale[: wide.shape[0], : wide.shape[1]]


def gate_and_up(gate_up: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if interleaved:
        return gate_up[:, 0::2], gate_up[:, 1::2]
    gate, up = gate_up.chunk(2, -1)
    return gate, up


def gated(
    gate: torch.Tensor, up: torch.Tensor, alpha: float, limit: float | None, up_offset: float
) -> torch.Tensor:
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    # Not torch.sigmoid: on a CPU its bits differ between vector body and scalar tail, so an
    # element's place would show in its value.
    return gate / (1.0 + torch.exp(gate * -alpha)) * (up + up_offset)

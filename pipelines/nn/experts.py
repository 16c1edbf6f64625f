"""The experts of a mixture: matmuls over rows grouped by expert."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from quire.kernels.grouped_matmul_ragged import (
    grouped_matmul_ragged,
    grouped_matmul_swiglu_ragged,
)
from quire.kernels.grouped_matmul_ragged.cpu import gated_cpu
from quire.kernels.grouped_matmul_ragged.prepared import group_layers
from quire.kernels.linear import PreparedLinear
from quire.kernels.swish_glu import swish_glu
from quire.pipelines.architectures.moe_parts import SWIGLU, ExpertsSpec


class Matrix(NamedTuple):
    """An expert's weight [N, K] and bias [N], or all experts', [E, N, K] and [E, N].

    In the dtype of the model; with `scale`, as of `grouped_matmul_ragged`, the weight is float8.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None


class Groups(NamedTuple):
    """(token, expert) pairs grouped by expert, as `moe_create_indices` gives them."""

    order: torch.Tensor
    starts: torch.Tensor
    restore: torch.Tensor
    expert_ids: torch.Tensor
    stats: torch.Tensor


class Experts(Protocol):
    """What a mixture computes with."""

    def __call__(self, x_TC: torch.Tensor, groups: Groups, top_k: int) -> torch.Tensor:
        """What each pair's expert makes of its row of x, pair // top_k: [T * top_k, C], grouped."""
        ...


class PreparedExperts:
    """On a CPU: a prepared layer for each expert, whose rows are exact one by one."""

    def __init__(
        self, spec: ExpertsSpec, up: Sequence[PreparedLinear], down: Sequence[PreparedLinear]
    ) -> None:
        self._spec = spec
        self.up = tuple(up)
        self.down = tuple(down)
        self._up = group_layers(self.up)
        self._down = group_layers(self.down)

    def __call__(self, x_TC: torch.Tensor, groups: Groups, top_k: int) -> torch.Tensor:
        """As `Experts`."""
        starts, ids = groups.starts, groups.expert_ids
        x_MF = self._gated(self._up(x_TC, starts, ids, groups.order, top_k))
        return self._down(x_MF, starts, ids)

    def _gated(self, x_MF: torch.Tensor) -> torch.Tensor:
        spec, gate = self._spec, self._spec.gate
        if gate == SWIGLU and not spec.is_interleaved:
            return swish_glu(x_MF)
        return gated_cpu(x_MF, spec.is_interleaved, gate.alpha, gate.limit, gate.up_offset)


class GroupedExperts:
    """On a GPU: all experts in one launch, that waits for no count of rows.

    `up` is [E, 2F, C] and `down` [E, C, F].
    """

    def __init__(self, spec: ExpertsSpec, up: Matrix, down: Matrix) -> None:
        self._spec = spec
        self.up = up
        self.down = down

    def __call__(self, x_TC: torch.Tensor, groups: Groups, top_k: int) -> torch.Tensor:
        """As `Experts`."""
        spec, gate = self._spec, self._spec.gate
        x_MF = grouped_matmul_swiglu_ragged(
            x_TC,
            self.up.weight,
            groups.starts,
            groups.expert_ids,
            bias=self.up.bias,
            weight_scale=self.up.scale,
            token_expert_order=groups.order,
            top_k=top_k,
            interleaved=spec.is_interleaved,
            alpha=gate.alpha,
            limit=gate.limit,
            up_offset=gate.up_offset,
        )
        return grouped_matmul_ragged(
            x_MF,
            self.down.weight,
            groups.starts,
            groups.expert_ids,
            bias=self.down.bias,
            weight_scale=self.down.scale,
        )

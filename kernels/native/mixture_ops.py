"""Calls of the ops of a mixture in the compiled library, on CPU tensors that the ops have checked."""

import math
import struct

import torch

from quire.kernels.native import InstructionSet, Library
from quire.kernels.native.row_ops import BAD_BATCH, TYPE_CODES, raise_for

SCORINGS = {"softmax": 0, "softmax_top_k": 1, "sigmoid": 2}
"""Scoring of rows.h."""
ROUTER = struct.Struct("@4Q11qd")
INDICES = struct.Struct("@6Q2q")
GATE = struct.Struct("@2Q6q3d")
COMBINE = struct.Struct("@4Q6q")
"""The fields of the calls in rows.h."""


def router_native(
    native: Library,
    logits_TE: torch.Tensor,
    top_k: int,
    correction_bias_E: torch.Tensor | None = None,
    *,
    scoring: str = "softmax",
    renormalize: bool = False,
    num_groups: int = 1,
    top_k_groups: int = 1,
    group_score: str = "max",
    routed_scaling: float = 1.0,
    instruction_set: InstructionSet | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `moe_router_topk`, of float32 or bfloat16."""
    rows, experts = logits_TE.shape
    weights_TK = torch.empty((rows, top_k), dtype=torch.float32)
    experts_TK = torch.empty((rows, top_k), dtype=torch.int32)
    status = native.router(
        ROUTER.pack(
            logits_TE.data_ptr(),
            0 if correction_bias_E is None else correction_bias_E.data_ptr(),
            weights_TK.data_ptr(),
            experts_TK.data_ptr(),
            *(rows, experts, top_k, TYPE_CODES[logits_TE.dtype], SCORINGS[scoring], renormalize),
            *(num_groups, top_k_groups, group_score == "top2_sum"),
            torch.get_num_threads(),
            native.instruction_set if instruction_set is None else instruction_set,
            routed_scaling,
        )
    )
    if status:
        raise_for(status)
    return weights_TK, experts_TK


def indices_native(
    native: Library, topk_ids: torch.Tensor, results: tuple[torch.Tensor, ...]
) -> None:
    """As `moe_create_indices`, into `results`."""
    pointers = (result.data_ptr() for result in results)
    num_experts = results[3].shape[0]
    status = native.indices(
        INDICES.pack(topk_ids.data_ptr(), *pointers, topk_ids.shape[0], num_experts)
    )
    if status:
        raise_for(status)


def gate_native(
    native: Library,
    gate_up_M2F: torch.Tensor,
    interleaved: bool,
    alpha: float,
    limit: float | None,
    up_offset: float,
    *,
    instruction_set: InstructionSet | None = None,
) -> torch.Tensor:
    """As `gated` of the rows' gate and up, of float32 or bfloat16, rounded once: [M, F]."""
    rows, columns = gate_up_M2F.shape[0], gate_up_M2F.shape[1] // 2
    out_MF = gate_up_M2F.new_empty(rows, columns)
    status = native.gate(
        GATE.pack(
            *(gate_up_M2F.data_ptr(), out_MF.data_ptr(), rows, columns),
            *(TYPE_CODES[gate_up_M2F.dtype], interleaved, torch.get_num_threads()),
            native.instruction_set if instruction_set is None else instruction_set,
            *(alpha, math.inf if limit is None else limit, up_offset),
        )
    )
    if status:
        raise_for(status)
    return out_MF


def combine_native(
    native: Library,
    expert_out: torch.Tensor,
    restore_token_order: torch.Tensor,
    weights: torch.Tensor,
    *,
    instruction_set: InstructionSet | None = None,
) -> torch.Tensor:
    """As `moe_combine`, of float32 or bfloat16.

    Raises:
        ValueError: a place outside `expert_out`.
    """
    (tokens, top_k), columns = weights.shape, expert_out.shape[1]
    out_TN = expert_out.new_empty(tokens, columns)
    status = native.combine(
        COMBINE.pack(
            expert_out.data_ptr(),
            restore_token_order.data_ptr(),
            weights.data_ptr(),
            out_TN.data_ptr(),
            *(tokens, top_k, columns, TYPE_CODES[expert_out.dtype], torch.get_num_threads()),
            native.instruction_set if instruction_set is None else instruction_set,
        )
    )
    if status == BAD_BATCH:
        raise ValueError(f"restore_token_order must be from 0 to {tokens * top_k - 1}")
    if status:
        raise_for(status)
    return out_TN

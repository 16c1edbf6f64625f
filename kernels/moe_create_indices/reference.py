"""Grouping pairs by expert in plain torch: the definition of correct."""

import torch

from quire.kernels.moe_create_indices.indices import Indices


def moe_create_indices_reference(topk_ids: torch.Tensor, num_local_experts: int) -> Indices:
    """As `moe_create_indices`."""
    is_local = (topk_ids >= 0) & (topk_ids < num_local_experts)
    # Foreign pairs as one more expert, behind all others.
    experts = topk_ids.long().masked_fill(~is_local, num_local_experts)
    order = experts.argsort(stable=True)
    counts = experts.bincount(minlength=num_local_experts + 1)
    local_counts = counts[:num_local_experts]
    (active,) = local_counts.nonzero(as_tuple=True)
    ends = local_counts[active].cumsum(0)

    starts = topk_ids.new_full((num_local_experts + 1,), len(topk_ids))
    starts[0] = 0
    starts[1 : len(active) + 1] = ends
    expert_ids = topk_ids.new_full((num_local_experts,), -1)
    expert_ids[: len(active)] = active.int()
    stats = torch.stack([local_counts.max(), local_counts.count_nonzero()])
    return order.int(), starts, order.argsort().int(), expert_ids, stats.int()

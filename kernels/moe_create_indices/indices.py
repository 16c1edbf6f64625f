"""The result of `moe_create_indices`."""

import torch

Indices = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def empty_indices(topk_ids: torch.Tensor, num_local_experts: int) -> Indices:
    """Results not yet filled."""
    pairs = topk_ids.shape[0]
    order, starts, restore, ids, stats = (
        topk_ids.new_empty(size)
        for size in (pairs, num_local_experts + 1, pairs, num_local_experts, 2)
    )
    return order, starts, restore, ids, stats

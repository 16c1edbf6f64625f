"""The weighted sum over experts in plain torch: the definition of correct."""

import torch


def moe_combine_reference(
    expert_out: torch.Tensor, restore_token_order: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """As `moe_combine`."""
    places = restore_token_order.long().view(weights.shape)
    total = weights.new_zeros(weights.shape[0], expert_out.shape[1])
    for column, weight in zip(places.unbind(1), weights.unbind(1), strict=True):
        total += weight[:, None] * expert_out[column].float()
    return total.to(expert_out.dtype)

"""The order in which the experts of a mixture take their tokens."""

import torch

from quire.kernels.checks import check_range, check_tensor
from quire.kernels.moe_create_indices.indices import Indices, empty_indices
from quire.kernels.torch_op import torch_op

MAX_EXPERTS = 4096


@torch_op(fake=empty_indices)
def moe_create_indices(topk_ids: torch.Tensor, num_local_experts: int) -> Indices:
    """Group the (token, expert) pairs of a step by expert, on the device they are on.

    Groups that have pairs come first, in order of their expert; within a group pairs keep their
    order. Pairs of experts outside 0..E-1 (of another device) come last, in a group of id -1.

    Args:
        topk_ids: [M] int32, contiguous: the experts of each token, one token after the other.
        num_local_experts: E, at most 4096.

    Returns:
        All int32:
        token_expert_order [M]: pair at each place of the grouped order.
        expert_start_indices [E + 1]: place where each group starts; M beyond the last group.
        restore_token_order [M]: place of each pair, the inverse of `token_expert_order`.
        expert_ids [E]: expert of each group, -1 beyond the last.
        expert_usage_stats [2]: pairs of the busiest expert, and how many experts have pairs.

    Raises:
        ValueError: a shape or dtype outside the above.
    """
    check_tensor("topk_ids", topk_ids, ("M",), torch.int32)
    check_range("num_local_experts", num_local_experts, 1, MAX_EXPERTS)
    if topk_ids.is_cuda:
        from quire.kernels.moe_create_indices.kernel import moe_create_indices_triton as run
    else:
        from quire.kernels.moe_create_indices.cpu import moe_create_indices_cpu as run
    return run(topk_ids, num_local_experts)

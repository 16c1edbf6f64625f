"""The weighted sum of what a token's experts gave."""

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.torch_op import torch_op


def _fake(
    expert_out: torch.Tensor, restore_token_order: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    return expert_out.new_empty(weights.shape[0], expert_out.shape[1])


@torch_op(fake=_fake)
def moe_combine(
    expert_out: torch.Tensor, restore_token_order: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """out[t] = sum over i of weights[t, i] * expert_out[restore_token_order[t * k + i]].

    Summed in fp32 in the order of i and rounded once, so a token's bits depend on its own rows
    and weights alone.

    Args:
        expert_out: [T * k, N], bfloat16, float16 or float32, contiguous, in grouped order.
        restore_token_order: [T * k] int32 of `moe_create_indices`.
        weights: [T, k] float32, contiguous.

    Returns:
        [T, N] in the dtype of `expert_out`.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("expert_out", expert_out, ("T*k", "N"), FLOATS)
    device, pairs = expert_out.device, expert_out.shape[0]
    check_tensor("restore_token_order", restore_token_order, (pairs,), torch.int32, device=device)
    check_tensor("weights", weights, ("T", "k"), torch.float32, device=device)
    if weights.numel() != pairs:
        raise ValueError(
            f"weights must have {pairs} entries as expert_out has rows, got {list(weights.shape)}"
        )
    if expert_out.is_cuda:
        from quire.kernels.moe_combine.kernel import moe_combine_triton as run
    else:
        from quire.kernels.moe_combine.cpu import moe_combine_cpu as run
    return run(expert_out, restore_token_order, weights)

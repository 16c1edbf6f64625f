"""The weighted sum over experts on a CPU: compiled where it was installed, else torch's."""

import torch

from quire.kernels.moe_combine.reference import moe_combine_reference
from quire.kernels.native import library
from quire.kernels.native.mixture_ops import combine_native
from quire.kernels.native.row_ops import is_native


def moe_combine_cpu(
    expert_out: torch.Tensor, restore_token_order: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """As `moe_combine`."""
    native = library()
    if native is not None and is_native(expert_out):
        return combine_native(native, expert_out, restore_token_order, weights)
    return moe_combine_reference(expert_out, restore_token_order, weights)

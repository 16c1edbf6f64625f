"""RMS norm in plain torch: the definition of correct, and the CPU path."""

import torch


def rms_norm_reference(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rms_norm`."""
    if residual_TC is not None:
        x_TC = x_TC + residual_TC
    wide = x_TC.float()
    # fp32 square root and division are correctly rounded, so vector body and scalar tail agree;
    # a bfloat16 rsqrt differs between them.
    inverse = 1.0 / torch.sqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight_C * (wide * inverse).to(x_TC.dtype), x_TC

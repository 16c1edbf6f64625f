"""Layer norm in plain torch: the definition of correct."""

import torch


def layer_norm_reference(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `layer_norm`."""
    if residual_TC is not None:
        x_TC = x_TC + residual_TC
    wide = x_TC.float()
    centered = wide - wide.mean(-1, keepdim=True)
    inverse = 1.0 / torch.sqrt(centered.square().mean(-1, keepdim=True) + epsilon)
    normed = centered * inverse * weight_C.float()
    if bias_C is not None:
        normed += bias_C.float()
    return normed.to(x_TC.dtype), x_TC

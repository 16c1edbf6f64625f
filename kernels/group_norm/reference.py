"""Group norm in plain torch: the definition of correct, and the CPU path."""

import torch


def group_norm_reference(
    x: torch.Tensor,
    num_groups: int,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    """As `group_norm`."""
    out = torch.empty_like(x)
    # One sample at a time: torch may split a long sum between threads by how many sums there are.
    for sample, normed in zip(x, out, strict=True):
        wide = sample.float().reshape(num_groups, -1)
        centered = wide - wide.mean(-1, keepdim=True)
        inverse = 1.0 / torch.sqrt(centered.square().mean(-1, keepdim=True) + epsilon)
        result = (centered * inverse).view(len(weight_C), -1) * weight_C.float()[:, None]
        if bias_C is not None:
            result += bias_C.float()[:, None]
        normed.copy_(result.view_as(normed))
    return out

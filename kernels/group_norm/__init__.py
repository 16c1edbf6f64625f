"""Group norm, for convolutional encoders and decoders."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.torch_op import torch_op


def _fake(x: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.empty_like(x)


@torch_op(fake=_fake)
def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    """Normalize each group of channels of each sample to mean 0 and variance 1.

    (x - mean) * (variance + epsilon)^-0.5 * weight + bias, in fp32 and rounded once, the variance
    that of the population (Wu and He 2018, https://arxiv.org/abs/1803.08494). A sample's bits
    depend on that sample alone.

    Args:
        x: [N, C, ...], bfloat16, float16 or float32, contiguous, C a multiple of `num_groups`.
        num_groups: at least 1.
        weight_C: [C] in the dtype of x, per channel.
        bias_C: as `weight_C`, or None.
        epsilon: added to the variance.

    Returns:
        As `x`.

    Raises:
        ValueError: a shape or dtype outside the above.
    """
    if x.ndim < 2:
        raise ValueError(f"x must be [N, C, ...], got {list(x.shape)}")
    check_tensor("x", x, x.shape, FLOATS)
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups must divide {channels} channels, got {num_groups}")
    check_tensor("weight_C", weight_C, (channels,), x.dtype, device=x.device)
    if bias_C is not None:
        check_tensor("bias_C", bias_C, (channels,), x.dtype, device=x.device)
    if x.is_cuda:
        from quire.kernels.group_norm.kernel import group_norm_triton as run
    else:
        from quire.kernels.group_norm.reference import group_norm_reference as run
    return run(x, num_groups, weight_C, bias_C, epsilon)

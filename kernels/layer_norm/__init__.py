"""Layer norm with the residual addition of the layer before it."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.layer_norm.cpu import layer_norm_cpu
from quire.kernels.torch_op import torch_op


def _fake(x_TC: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x_TC), torch.empty_like(x_TC)


@torch_op(fake=_fake)
def layer_norm(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the residual, if given, and normalize each row to mean 0 and variance 1.

    sum = x + residual, rounded to the dtype of x; normed = (sum - mean) * (variance +
    epsilon)^-0.5 * weight + bias, in fp32 and rounded once, the variance that of the population
    (Ba et al. 2016, https://arxiv.org/abs/1607.06450). A row's bits depend on that row alone.

    Args:
        x_TC: [T, C], bfloat16, float16 or float32, contiguous.
        weight_C: [C] in the dtype of x.
        bias_C: as `weight_C`, or None.
        epsilon: added to the variance.
        residual_TC: as `x_TC`, or None.

    Returns:
        normed_TC and the new residual: the sum, or x itself without a residual.

    Raises:
        ValueError: a shape or dtype outside the above.
    """
    check_tensor("x_TC", x_TC, ("T", "C"), FLOATS)
    tokens, columns = x_TC.shape
    check_tensor("weight_C", weight_C, (columns,), x_TC.dtype, device=x_TC.device)
    if bias_C is not None:
        check_tensor("bias_C", bias_C, (columns,), x_TC.dtype, device=x_TC.device)
    if residual_TC is not None:
        check_tensor("residual_TC", residual_TC, (tokens, columns), x_TC.dtype, device=x_TC.device)
    if not x_TC.is_cuda:
        return layer_norm_cpu(x_TC, weight_C, bias_C, epsilon, residual_TC)
    from quire.kernels.layer_norm.kernel import layer_norm_triton

    return layer_norm_triton(x_TC, weight_C, bias_C, epsilon, residual_TC)

"""RMS norm with the residual addition of the layer before it."""

import torch


def rms_norm(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the residual, if given, and normalize each row by its root mean square.

    sum = x + residual, rounded to the dtype of x; normed = weight * (sum * (mean(sum^2) +
    epsilon)^-0.5), statistics in fp32 and rounded to the dtype of x before the weight, as HF
    LlamaRMSNorm (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467). A row's bits depend
    on that row alone.

    Args:
        x_TC: [T, C], bfloat16, float16 or float32, contiguous.
        weight_C: [C] in the dtype of x.
        epsilon: added to the mean square.
        residual_TC: as `x_TC`, or None.

    Returns:
        normed_TC and the new residual: the sum, or x itself without a residual.

    Raises:
        ValueError: a shape or dtype outside the above.
    """
    if x_TC.ndim != 2 or not x_TC.is_contiguous():
        raise ValueError(f"x must be contiguous [T, C], got {tuple(x_TC.shape)}")
    if weight_C.shape != x_TC.shape[1:] or weight_C.dtype != x_TC.dtype:
        raise ValueError(
            f"weight must be [{x_TC.shape[1]}] of {x_TC.dtype}, "
            f"got {tuple(weight_C.shape)} of {weight_C.dtype}"
        )
    if residual_TC is not None and (
        residual_TC.shape != x_TC.shape
        or residual_TC.dtype != x_TC.dtype
        or not residual_TC.is_contiguous()
    ):
        raise ValueError(
            f"residual must be contiguous {tuple(x_TC.shape)} of {x_TC.dtype}, "
            f"got {tuple(residual_TC.shape)} of {residual_TC.dtype}"
        )
    if x_TC.is_cuda:
        from quire.kernels.rms_norm.kernel import rms_norm_triton as run
    else:
        from quire.kernels.rms_norm.reference import rms_norm_reference as run
    return run(x_TC, weight_C, epsilon, residual_TC)

"""RMS norm with the residual addition of the layer before it, in the dtype of x or in fp8."""

from collections.abc import Callable
from typing import Any

import torch

from quire.kernels.checks import FLOATS, are_alike, check_tensor
from quire.kernels.float8 import FP8, check_scale
from quire.kernels.rms_norm.cpu import rms_norm_cpu
from quire.kernels.torch_op import torch_op


def _fake(x_TC: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x_TC), torch.empty_like(x_TC)


@torch_op(fake=_fake)
def rms_norm(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
    *,
    weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
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
        weight_offset: added to the weight in fp32: 1 for weights stored as in HF GemmaRMSNorm.
        multiply_before_cast: multiply by the weight in fp32 and round once, as GemmaRMSNorm.

    Returns:
        normed_TC and the new residual: the sum, or x itself without a residual.

    Raises:
        ValueError: a shape or dtype outside the above.
    """
    _check(x_TC, weight_C, residual_TC)
    return _path(x_TC.is_cuda)(
        x_TC,
        weight_C,
        epsilon,
        residual_TC,
        weight_offset=weight_offset,
        multiply_before_cast=multiply_before_cast,
    )


def _path(is_cuda: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    if not is_cuda:
        return rms_norm_cpu
    from quire.kernels.rms_norm.kernel import rms_norm_triton

    return rms_norm_triton


def _fake_quantized(
    x_TC: torch.Tensor, scale: torch.Tensor | None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scales = x_TC.new_empty(x_TC.shape[0], 1, dtype=torch.float32) if scale is None else scale
    return torch.empty_like(x_TC, dtype=FP8), scales.clone(), torch.empty_like(x_TC)


@torch_op(fake=_fake_quantized)
def rms_norm_quantized(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    epsilon: float,
    residual_TC: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`rms_norm`, then quantization to fp8, in one pass and with the same bits.

    Args:
        x_TC, weight_C, epsilon, residual_TC, weight_offset, multiply_before_cast: as of
            `rms_norm`, C at least 1.
        scale: one float32 on the device, as of `quantize_static_scaled_float8`, or None for a
            scale per row, as of `quantize_dynamic_scaled_float8`.

    Returns:
        [T, C] of float8_e4m3fn; its scales: float32 [T, 1], or `scale` itself; and the new
        residual as `rms_norm` gives it.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check(x_TC, weight_C, residual_TC)
    if x_TC.shape[1] == 0:
        raise ValueError(f"x_TC must have columns, got {list(x_TC.shape)}")
    if scale is not None:
        check_scale("scale", scale, x_TC.device)
    if x_TC.is_cuda:
        from quire.kernels.rms_norm.kernel import rms_norm_quantized_triton as run
    else:
        from quire.kernels.rms_norm.cpu import rms_norm_quantized_cpu as run
    return run(
        x_TC,
        weight_C,
        epsilon,
        residual_TC,
        scale=scale,
        weight_offset=weight_offset,
        multiply_before_cast=multiply_before_cast,
    )


def _check(x_TC: torch.Tensor, weight_C: torch.Tensor, residual_TC: torch.Tensor | None) -> None:
    shape = x_TC.shape
    if len(shape) == 2 and weight_C.shape == shape[1:] and x_TC.dtype in FLOATS:
        if residual_TC is None:
            is_sound = are_alike(x_TC, weight_C)
        else:
            is_sound = residual_TC.shape == shape and are_alike(x_TC, weight_C, residual_TC)
        if is_sound:
            return
    check_tensor("x_TC", x_TC, ("T", "C"), FLOATS)
    tokens, columns = x_TC.shape
    check_tensor("weight_C", weight_C, (columns,), x_TC.dtype, device=x_TC.device)
    if residual_TC is not None:
        check_tensor("residual_TC", residual_TC, (tokens, columns), x_TC.dtype, device=x_TC.device)

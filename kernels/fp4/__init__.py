"""4-bit float weights, MXFP4 and NVFP4: dequantization, and matmul on the stored bytes."""

from typing import Any

import torch

from quire.kernels.checks import check_tensor
from quire.kernels.dequantizing_matmul import check_input, check_out_dtype
from quire.kernels.fp4.formats import MXFP4_GROUP, NVFP4_GROUP
from quire.kernels.torch_op import torch_op


def _check_values(weight: torch.Tensor, group: int, device: torch.device | None) -> int:
    """How many groups a row of the weight has; ValueError unless they come out even."""
    check_tensor("weight", weight, ("N", "K / 2"), torch.uint8, device=device)
    if weight.shape[1] * 2 % group:
        raise ValueError(
            f"weight must have rows of whole groups of {group // 2} bytes, "
            f"got {weight.shape[1]} bytes"
        )
    return weight.shape[1] * 2 // group


def _check_mxfp4(
    weight: torch.Tensor, weight_scale: torch.Tensor, device: torch.device | None = None
) -> None:
    groups = _check_values(weight, MXFP4_GROUP, device)
    shape, dtypes = (weight.shape[0], groups), (torch.uint8, torch.float8_e8m0fnu)
    check_tensor("weight_scale", weight_scale, shape, dtypes, device=weight.device)


def _check_nvfp4(
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_scale_2: torch.Tensor,
    device: torch.device | None = None,
) -> None:
    groups = _check_values(weight, NVFP4_GROUP, device)
    shape = (weight.shape[0], groups)
    check_tensor("weight_scale", weight_scale, shape, torch.float8_e4m3fn, device=weight.device)
    if weight_scale_2.numel() != 1:
        raise ValueError(f"weight_scale_2 must be one number, got {list(weight_scale_2.shape)}")
    check_tensor(
        "weight_scale_2",
        weight_scale_2,
        weight_scale_2.shape,
        torch.float32,
        device=weight.device,
    )


def _fake_dequantize(
    weight: torch.Tensor, out_dtype: torch.dtype = torch.float32, **_: Any
) -> torch.Tensor:
    return weight.new_empty(weight.shape[0], weight.shape[1] * 2, dtype=out_dtype)


@torch_op(fake=_fake_dequantize)
def dequantize_mxfp4(
    weight: torch.Tensor, weight_scale: torch.Tensor, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The values of MXFP4 weights, computed in fp32 and rounded to `out_dtype`.

    value = e2m1 * 2^(scale - 127) with a scale for each 32 numbers along K; scale 255 is NaN (OCP
    Microscaling Formats v1.0, see `formats`).

    Args:
        weight: [N, K / 2] uint8; the low 4 bits of byte i are number 2 i, the high ones 2 i + 1.
        weight_scale: [N, K / 32], uint8 or float8_e8m0fnu.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        [N, K].

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check_mxfp4(weight, weight_scale)
    check_out_dtype(out_dtype)
    if weight.is_cuda:
        from quire.kernels.fp4.kernel import dequantize_mxfp4_triton as run
    else:
        from quire.kernels.fp4.reference import dequantize_mxfp4_reference as run
    return run(weight, weight_scale, out_dtype)


def _fake_matmul(x_TK: torch.Tensor, weight: torch.Tensor, **_: Any) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], weight.shape[0])


@torch_op(fake=_fake_matmul)
def matmul_mxfp4(
    x_TK: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + b with the weights of `dequantize_mxfp4`, rounded to the dtype of x.

    Sums are in fp32. On CUDA weights are dequantized in registers and a row's bits do not depend
    on the other rows. On a CPU every call dequantizes the whole weight first: to serve there,
    dequantize once at load and use `quire.kernels.linear.prepare_linear`.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.
        weight: [N, K / 2] uint8, as of `dequantize_mxfp4`.
        weight_scale: [N, K / 32], uint8 or float8_e8m0fnu.
        bias_N: [N] in the dtype of x, or None.

    Returns:
        [T, N] in the dtype of x.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check_mxfp4(weight, weight_scale, x_TK.device)
    check_input(x_TK, weight.shape[1] * 2, weight.shape[0], bias_N)
    if x_TK.is_cuda:
        from quire.kernels.fp4.kernel import matmul_mxfp4_triton as run
    else:
        from quire.kernels.fp4.reference import matmul_mxfp4_reference as run
    return run(x_TK, weight, weight_scale, bias_N)


@torch_op(fake=_fake_dequantize)
def dequantize_nvfp4(
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_scale_2: torch.Tensor,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The values of NVFP4 weights, computed in fp32 and rounded to `out_dtype`.

    value = e2m1 * (weight_scale * weight_scale_2), with a scale for each 16 numbers along K and
    one for the whole weight, as NVIDIA ModelOpt stores them.

    Args:
        weight: [N, K / 2] uint8; the low 4 bits of byte i are number 2 i, the high ones 2 i + 1.
        weight_scale: [N, K / 16] float8_e4m3fn, rows in order (not swizzled).
        weight_scale_2: one float32.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        [N, K].

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check_nvfp4(weight, weight_scale, weight_scale_2)
    check_out_dtype(out_dtype)
    if weight.is_cuda:
        from quire.kernels.fp4.kernel import dequantize_nvfp4_triton as run
    else:
        from quire.kernels.fp4.reference import dequantize_nvfp4_reference as run
    return run(weight, weight_scale, weight_scale_2, out_dtype)


@torch_op(fake=_fake_matmul)
def matmul_nvfp4(
    x_TK: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_scale_2: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + b with the weights of `dequantize_nvfp4`, rounded to the dtype of x.

    x is not quantized. Rounding, exactness and cost on a CPU as of `matmul_mxfp4`.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.
        weight: [N, K / 2] uint8, as of `dequantize_nvfp4`.
        weight_scale: [N, K / 16] float8_e4m3fn.
        weight_scale_2: one float32.
        bias_N: [N] in the dtype of x, or None.

    Returns:
        [T, N] in the dtype of x.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check_nvfp4(weight, weight_scale, weight_scale_2, x_TK.device)
    check_input(x_TK, weight.shape[1] * 2, weight.shape[0], bias_N)
    if x_TK.is_cuda:
        from quire.kernels.fp4.kernel import matmul_nvfp4_triton as run
    else:
        from quire.kernels.fp4.reference import matmul_nvfp4_reference as run
    return run(x_TK, weight, weight_scale, weight_scale_2, bias_N)

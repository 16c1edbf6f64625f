"""int8 weights with a scale per row: dequantization, and matmul on the stored bytes."""

from typing import Any

import torch

from quire.kernels.checks import check_tensor
from quire.kernels.dequantizing_matmul import check_input, check_out_dtype
from quire.kernels.torch_op import torch_op


def _check(
    weight_NK: torch.Tensor, scale_N1: torch.Tensor, device: torch.device | None = None
) -> None:
    check_tensor("weight_NK", weight_NK, ("N", "K"), torch.int8, device=device)
    shape = (weight_NK.shape[0], 1)
    check_tensor("scale_N1", scale_N1, shape, torch.float32, device=weight_NK.device)


def _fake_dequantize(
    weight_NK: torch.Tensor, scale_N1: torch.Tensor, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return weight_NK.new_empty(weight_NK.shape, dtype=out_dtype)


@torch_op(fake=_fake_dequantize)
def dequantize_int8(
    weight_NK: torch.Tensor, scale_N1: torch.Tensor, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """number * scale, computed in fp32 and rounded to `out_dtype`.

    Args:
        weight_NK: [N, K] int8, contiguous.
        scale_N1: [N, 1] float32, contiguous.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        [N, K].

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check(weight_NK, scale_N1)
    check_out_dtype(out_dtype)
    if weight_NK.is_cuda:
        from quire.kernels.int8.kernel import dequantize_int8_triton as run
    else:
        from quire.kernels.int8.reference import dequantize_int8_reference as run
    return run(weight_NK, scale_N1, out_dtype)


def _fake_matmul(x_TK: torch.Tensor, weight_NK: torch.Tensor, **_: Any) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], weight_NK.shape[0])


@torch_op(fake=_fake_matmul)
def matmul_int8(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N1: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + b with the weights of `dequantize_int8`, rounded to the dtype of x.

    x is not quantized; sums are in fp32. On CUDA weights are dequantized in registers and a row's
    bits do not depend on the other rows. On a CPU every call dequantizes the whole weight first:
    to serve there, use `quire.kernels.linear.cpu_native.NativeLinear`, or without the compiled library
    dequantize once at load and use `quire.kernels.linear.prepare_linear`.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.
        weight_NK: [N, K] int8, contiguous.
        scale_N1: [N, 1] float32, contiguous.
        bias_N: [N] in the dtype of x, or None.

    Returns:
        [T, N] in the dtype of x.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check(weight_NK, scale_N1, x_TK.device)
    check_input(x_TK, weight_NK.shape[1], weight_NK.shape[0], bias_N)
    if x_TK.is_cuda:
        from quire.kernels.int8.kernel import matmul_int8_triton as run
    else:
        from quire.kernels.int8.reference import matmul_int8_reference as run
    return run(x_TK, weight_NK, scale_N1, bias_N)

"""Products of fp8 matrices with their scales, accumulated in fp32; rows are exact on CUDA."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.float8 import FP8, SCALE_BLOCK, are_block_scales, check_scale
from quire.kernels.linear.dispatch import capability_of
from quire.kernels.torch_op import torch_op

FP8_CAPABILITY = 89
"""Least compute capability * 10 whose tensor cores multiply fp8."""


def _fake_static(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, out_type: torch.dtype, **_: Any
) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], weight_NK.shape[0], dtype=out_type)


@torch_op(fake=_fake_static)
def matmul_static_scaled_float8(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    input_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    out_type: torch.dtype = torch.bfloat16,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T * input_scale * weight_scale + b with one scale per matrix.

    Args:
        x_TK: [T, K], float8_e4m3fn, contiguous.
        weight_NK: [N, K], float8_e4m3fn, contiguous.
        input_scale: one float32: [], [1] or [1, 1].
        weight_scale: as `input_scale`.
        out_type: of the result: bfloat16, float16 or float32.
        bias_N: [N] of `out_type`, or None.

    Returns:
        [T, N] of `out_type`.

    Raises:
        ValueError: a shape, dtype or device outside the above, or a GPU without fp8.
    """
    check_operands(("x_TK", x_TK), ("weight_NK", weight_NK), bias_N, out_type)
    check_scale("input_scale", input_scale, x_TK.device)
    check_scale("weight_scale", weight_scale, x_TK.device)
    if x_TK.is_cuda:
        from quire.kernels.matmul_scaled_float8.kernel import (
            matmul_static_scaled_float8_triton as run,
        )
    else:
        from quire.kernels.matmul_scaled_float8.reference import (
            matmul_static_scaled_float8_reference as run,
        )
    return run(x_TK, weight_NK, input_scale, weight_scale, out_type=out_type, bias_N=bias_N)


def _fake_dynamic(
    a_MK: torch.Tensor, b_NK: torch.Tensor, out_type: torch.dtype, **_: Any
) -> torch.Tensor:
    return a_MK.new_empty(a_MK.shape[0], b_NK.shape[0], dtype=out_type)


@torch_op(fake=_fake_dynamic)
def dynamic_scaled_matmul(
    a_MK: torch.Tensor,
    b_NK: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    *,
    out_type: torch.dtype = torch.bfloat16,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """a b^T of scaled fp8 matrices: each element stands for stored * scale.

    The scales of a and of b are each one number (per tensor) or one for each of their rows, laid
    out as a column or as a row; or both are per block (DeepSeek 2024,
    https://arxiv.org/abs/2412.19437, section 3.3): per row and 128 columns of a, per 128 rows and
    128 columns of b. Rows of b are the columns of the product, so that their scales are often
    called per column or per channel. Sums over 128 columns are added up in fp32. A row's bits do
    not depend on the other rows on CUDA.

    Args:
        a_MK: [M, K], float8_e4m3fn, contiguous.
        b_NK: [N, K], float8_e4m3fn, contiguous.
        a_scales: float32 [], [1], [1, 1], [M, 1] or [1, M]; per block [M, ceil(K / 128)].
        b_scales: float32 [], [1], [1, 1], [N, 1] or [1, N]; per block
            [ceil(N / 128), ceil(K / 128)], which also [1, N] is where it is that shape.
        out_type: of the result: bfloat16, float16 or float32.
        bias_N: [N] of `out_type`, or None.

    Returns:
        [M, N] of `out_type`.

    Raises:
        ValueError: a shape, dtype or device outside the above, or a GPU without fp8.
    """
    check_operands(("a_MK", a_MK), ("b_NK", b_NK), bias_N, out_type)
    check_scales(a_MK, b_NK, ("a_scales", a_scales), ("b_scales", b_scales))
    if a_MK.is_cuda:
        from quire.kernels.matmul_scaled_float8.kernel import dynamic_scaled_matmul_triton as run
    else:
        from quire.kernels.matmul_scaled_float8.reference import (
            dynamic_scaled_matmul_reference as run,
        )
    return run(a_MK, b_NK, a_scales, b_scales, out_type=out_type, bias_N=bias_N)


def check_operands(
    left: tuple[str, torch.Tensor],
    right: tuple[str, torch.Tensor],
    bias_N: torch.Tensor | None,
    out_type: torch.dtype,
) -> None:
    """Raise ValueError, with the operands' names, unless they can be multiplied."""
    device = left[1].device
    check_tensor(*left, ("rows", "K"), FP8)
    check_device(left[0], device)
    check_tensor(*right, ("N", left[1].shape[1]), FP8, device=device)
    if out_type not in FLOATS:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ValueError(f"out_type must be {names}, got {str(out_type).removeprefix('torch.')}")
    if bias_N is not None:
        check_tensor("bias_N", bias_N, (right[1].shape[0],), out_type, device=device)


def check_device(name: str, device: torch.device) -> None:
    """Raise ValueError for a GPU that has no fp8 instructions."""
    if device.type == "cuda" and (capability := capability_of(device)) < FP8_CAPABILITY:
        raise ValueError(
            f"{name} must be on a CPU or a GPU of compute capability {FP8_CAPABILITY / 10} "
            f"or more, got {capability / 10}"
        )


def check_scales(
    a_MK: torch.Tensor,
    b_NK: torch.Tensor,
    a_scales: tuple[str, torch.Tensor],
    b_scales: tuple[str, torch.Tensor],
) -> None:
    """Raise ValueError, with the scales' names, unless they fit the operands and each other."""
    for name, scales in (a_scales, b_scales):
        check_tensor(name, scales, scales.shape, torch.float32, device=a_MK.device)
    rows, features = a_MK.shape[0], b_NK.shape[0]
    blocks = -(-a_MK.shape[1] // SCALE_BLOCK)
    if are_block_scales(b_NK, b_scales[1]):
        expected = f"[{rows}, {blocks}], as those of {b_scales[0]} are per block"
        fits = a_scales[1].shape == (rows, blocks)
    else:
        name, scales = b_scales
        if not _is_one(scales) and scales.shape not in ((features, 1), (1, features)):
            raise ValueError(
                f"{name} must be one number, [{features}, 1], [1, {features}] or, per block, "
                f"[{-(-features // SCALE_BLOCK)}, {blocks}], got {list(scales.shape)}"
            )
        expected = f"one number, [{rows}, 1] or [1, {rows}], as those of {name} are not per block"
        fits = _is_one(a_scales[1]) or a_scales[1].shape in ((rows, 1), (1, rows))
    if not fits:
        raise ValueError(f"{a_scales[0]} must be {expected}, got {list(a_scales[1].shape)}")


def _is_one(scales: torch.Tensor) -> bool:
    return scales.numel() == 1 and scales.ndim <= 2

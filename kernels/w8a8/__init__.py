"""int8 weights times int8 activations: rows are quantized as they come, sums are exact.

As vLLM and compressed-tensors have it (`int-quantized`, dynamic, per token, symmetric).
"""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.dequantizing_matmul import check_input
from quire.kernels.torch_op import torch_op

MAX_FEATURES = 1 << 17
"""Of an input, whose products of int8 an int32 can sum."""


def _fake_quantize(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x_TK, dtype=torch.int8), x_TK.new_empty(len(x_TK), 1).float()


@torch_op(fake=_fake_quantize)
def quantize_rows_int8(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row as int8 with a scale of its own: greatest magnitude / 127, computed in fp32.

    Numbers are x / scale, rounded to nearest even. A scale is at least the smallest normal
    float32, so that zeros stay zeros; that of a row with NaN or infinity is NaN, its numbers 0.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.

    Returns:
        [T, K] int8 from -127 to 127, and the scales [T, 1] float32.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("x_TK", x_TK, ("T", "K"), FLOATS)
    if x_TK.shape[1] == 0:
        raise ValueError(f"x_TK must have at least one column, got {list(x_TK.shape)}")
    if x_TK.is_cuda:
        from quire.kernels.w8a8.kernel import quantize_rows_int8_triton as run
    else:
        from quire.kernels.w8a8.reference import quantize_rows_int8_reference as run
    return run(x_TK)


def _fake_matmul(x_TK: torch.Tensor, weight_NK: torch.Tensor, **_: Any) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], weight_NK.shape[0])


@torch_op(fake=_fake_matmul)
def matmul_w8a8(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N1: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + b with the rows of x as `quantize_rows_int8` has them.

    y = float32(sum) * scale of the row * scale of the column + b, rounded to the dtype of x. Sums
    are whole numbers, so a row's bits depend on nothing else. To serve on a CPU, use `prepare_w8a8`.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous; K at most 131,072.
        weight_NK: [N, K] int8, contiguous.
        scale_N1: [N, 1] float32, contiguous.
        bias_N: [N] in the dtype of x, or None.

    Returns:
        [T, N] in the dtype of x. A row that is not finite gives NaN.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_weight(weight_NK, scale_N1, x_TK.device)
    check_input(x_TK, weight_NK.shape[1], weight_NK.shape[0], bias_N)
    if x_TK.is_cuda:
        from quire.kernels.w8a8.kernel import matmul_w8a8_triton as run
    else:
        from quire.kernels.w8a8.reference import matmul_w8a8_reference as run
    return run(x_TK, weight_NK, scale_N1, bias_N)


def check_weight(weight_NK: torch.Tensor, scale_N1: torch.Tensor, device: torch.device) -> None:
    """Raise ValueError unless these are int8 weights with a scale per row, of few enough columns."""
    check_tensor("weight_NK", weight_NK, ("N", "K"), torch.int8, device=device)
    if weight_NK.shape[1] > MAX_FEATURES:
        raise ValueError(
            f"weight_NK must have at most {MAX_FEATURES} columns, got {weight_NK.shape[1]}"
        )
    shape = (weight_NK.shape[0], 1)
    check_tensor("scale_N1", scale_N1, shape, torch.float32, device=device)

"""MXFP4 weights as float8, for matmuls that take no 4-bit numbers."""

import torch

from quire.kernels.fp4 import dequantize_mxfp4

BIAS = 127
NAN_SCALE = 255
HEADROOM = 6
"""The greatest e2m1 number, 6, times 2^6 is below the 448 of float8_e4m3fn."""


def as_float8(packed: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn [N, K] and a scale for each row, float32 [N, 1], a power of two.

    Arguments as of `dequantize_mxfp4`, scales uint8. The numbers are the same wherever the scales
    of a row's groups are within 2^14 of each other: float8 has bits for those exponents. Smaller
    ones are off by at most 2^-18 of the row's greatest. A scale that is NaN makes its row's NaN.
    """
    is_zero = (packed & 0x77 == 0).view(*scales.shape, -1).all(-1)
    exponents = scales.int().masked_fill(is_zero, 0)
    greatest = exponents.amax(1, keepdim=True)
    moved = (exponents - greatest + BIAS + HEADROOM).clamp(min=0)
    numbers = dequantize_mxfp4(packed, moved.to(torch.uint8), torch.float32)
    row_scale = torch.exp2((greatest - BIAS - HEADROOM).float())
    is_nan = (scales == NAN_SCALE).any(1, keepdim=True)
    return numbers.to(torch.float8_e4m3fn), row_scale.masked_fill(is_nan, torch.nan)

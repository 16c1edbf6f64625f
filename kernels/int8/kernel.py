"""Triton: tiles of int8 weights to fp32."""

import torch
import triton
import triton.language as tl

from quire.kernels.dequantizing_matmul.kernel import Packed, dequantize, dequantizing_matmul

BLOCK_K = 64


@triton.jit
def _int8(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A scale for each output column; the signature of `Packed.decode`."""
    weight, scale = operands
    index = (column + tl.arange(0, BLOCK_N))[None, :]
    row = (k + tl.arange(0, BLOCK_K))[:, None]
    is_column = index < out_features
    place = weight + index.to(tl.int64) * in_features + row
    numbers = tl.load(place, mask=is_column & (row < in_features), other=0)
    return numbers.to(tl.float32) * tl.load(scale + index, mask=is_column, other=0.0)


def packed_int8(weight_NK: torch.Tensor, scale_N1: torch.Tensor) -> Packed:
    """int8 tensors as `dequantizing_matmul` takes them."""
    out_features, in_features = weight_NK.shape
    return Packed(_int8, (weight_NK, scale_N1), out_features, in_features, BLOCK_K)


def dequantize_int8_triton(
    weight_NK: torch.Tensor, scale_N1: torch.Tensor, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As `dequantize_int8`."""
    return dequantize(packed_int8(weight_NK, scale_N1), out_dtype)


def matmul_int8_triton(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N1: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_int8`."""
    return dequantizing_matmul(x_TK, packed_int8(weight_NK, scale_N1), bias_N)

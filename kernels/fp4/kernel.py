"""Triton: tiles of MXFP4 and NVFP4 weights to fp32.

Both functions have the signature of `Packed.decode`. A byte is loaded once and broadcast over its
2 numbers, in dimensions that run in the order of K, so that the reshape moves nothing.
"""

import torch
import triton
import triton.language as tl

from quire.kernels.dequantizing_matmul.kernel import Packed, dequantize, dequantizing_matmul
from quire.kernels.fp4.formats import MXFP4_GROUP, NVFP4_GROUP
from quire.kernels.triton_helpers import e4m3_values

BLOCK_K = 64


@triton.jit
def _e2m1_values(codes):
    """The values of e2m1 codes (int32, 0 to 15), in float32."""
    # At the place of fp16's exponent and mantissa the bits mean 2^-14 of the value.
    bits = ((codes & 7) << 9) | ((codes & 8) << 12)
    return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def _tile(operands, column, k, in_features, out_features, GROUP, BLOCK_K, BLOCK_N):
    """Values before scaling, codes of their scales: dimensions [group, byte, number, column]."""
    index = (column + tl.arange(0, BLOCK_N))[None, None, None, :]
    group = (k // GROUP + tl.arange(0, BLOCK_K // GROUP))[:, None, None, None]
    byte = group * (GROUP // 2) + tl.arange(0, GROUP // 2)[None, :, None, None]
    number = tl.arange(0, 2)[None, None, :, None]
    mask = (index < out_features) & (group * GROUP < in_features)
    row = index.to(tl.int64)
    packed = tl.load(operands[0] + row * (in_features // 2) + byte, mask=mask, other=0)
    scale = tl.load(operands[1] + row * (in_features // GROUP) + group, mask=mask, other=0)
    return _e2m1_values((packed.to(tl.int32) >> (number * 4)) & 15), scale


@triton.jit
def _mxfp4(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """32 numbers to a scale of 2^(code - 127)."""
    values, code = _tile(
        operands, column, k, in_features, out_features, CONSTANTS[0], BLOCK_K, BLOCK_N
    )
    exponent = code.to(tl.int32)
    # 2^-127 is below the normal numbers of fp32; 255 is NaN.
    bits = tl.where(exponent == 0, 0x00400000, exponent << 23)
    bits = tl.where(exponent == 255, 0x7FC00000, bits)
    return tl.reshape(values * bits.to(tl.float32, bitcast=True), (BLOCK_K, BLOCK_N))


@triton.jit
def _nvfp4(
    operands,
    column,
    k,
    in_features,
    out_features,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """16 numbers to an e4m3 scale, times one scale for the whole weight."""
    values, code = _tile(
        operands, column, k, in_features, out_features, CONSTANTS[0], BLOCK_K, BLOCK_N
    )
    scale = e4m3_values(code, tl.float32) * tl.load(operands[2])
    return tl.reshape(values * scale, (BLOCK_K, BLOCK_N))


def packed_mxfp4(weight: torch.Tensor, weight_scale: torch.Tensor) -> Packed:
    """MXFP4 tensors as `dequantizing_matmul` takes them."""
    operands = (weight, weight_scale.view(torch.uint8))
    out_features, row_bytes = weight.shape
    return Packed(_mxfp4, operands, out_features, row_bytes * 2, BLOCK_K, (MXFP4_GROUP,))


def packed_nvfp4(
    weight: torch.Tensor, weight_scale: torch.Tensor, weight_scale_2: torch.Tensor
) -> Packed:
    """NVFP4 tensors as `dequantizing_matmul` takes them."""
    operands = (weight, weight_scale.view(torch.uint8), weight_scale_2)
    out_features, row_bytes = weight.shape
    return Packed(_nvfp4, operands, out_features, row_bytes * 2, BLOCK_K, (NVFP4_GROUP,))


def dequantize_mxfp4_triton(
    weight: torch.Tensor, weight_scale: torch.Tensor, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As `dequantize_mxfp4`."""
    return dequantize(packed_mxfp4(weight, weight_scale), out_dtype)


def matmul_mxfp4_triton(
    x_TK: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_mxfp4`."""
    return dequantizing_matmul(x_TK, packed_mxfp4(weight, weight_scale), bias_N)


def dequantize_nvfp4_triton(
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_scale_2: torch.Tensor,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """As `dequantize_nvfp4`."""
    return dequantize(packed_nvfp4(weight, weight_scale, weight_scale_2), out_dtype)


def matmul_nvfp4_triton(
    x_TK: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_scale_2: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_nvfp4`."""
    return dequantizing_matmul(x_TK, packed_nvfp4(weight, weight_scale, weight_scale_2), bias_N)

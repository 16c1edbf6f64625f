"""Triton: GGUF blocks dequantized, and multiplied with as they are."""

from types import MappingProxyType

import torch

from quire.kernels.dequantizing_matmul.kernel import Packed, dequantize, dequantizing_matmul
from quire.kernels.gguf import blocks_of_32, blocks_of_256
from quire.kernels.gguf.encodings import in_features

DECODERS = MappingProxyType(
    {
        "Q4_0": blocks_of_32.q4_0,
        "Q4_1": blocks_of_32.q4_1,
        "Q5_0": blocks_of_32.q5_0,
        "Q5_1": blocks_of_32.q5_1,
        "Q8_0": blocks_of_32.q8_0,
        "IQ4_NL": blocks_of_32.iq4_nl,
        "Q2_K": blocks_of_256.q2_k,
        "Q3_K": blocks_of_256.q3_k,
        "Q4_K": blocks_of_256.q4_k,
        "Q5_K": blocks_of_256.q5_k,
        "Q6_K": blocks_of_256.q6_k,
        "IQ4_XS": blocks_of_256.iq4_xs,
    }
)
BLOCK_K = 64
"""How many weights of a row a tile has."""


def packed_gguf(weight_bytes: torch.Tensor, encoding: str) -> Packed:
    """GGUF blocks [N, bytes per row] as `dequantizing_matmul` takes them."""
    rows, row_bytes = weight_bytes.shape
    operands = (weight_bytes, row_bytes)
    return Packed(DECODERS[encoding], operands, rows, in_features(row_bytes, encoding), BLOCK_K)


def dequantize_gguf_triton(
    weight_bytes: torch.Tensor, encoding: str, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As `dequantize_gguf`."""
    return dequantize(packed_gguf(weight_bytes, encoding), out_dtype)


def matmul_gguf_triton(
    x_TK: torch.Tensor,
    weight_bytes: torch.Tensor,
    encoding: str,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_gguf`."""
    return dequantizing_matmul(x_TK, packed_gguf(weight_bytes, encoding), bias_N)

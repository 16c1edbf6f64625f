"""int8 times int8 with weights laid out for a CPU."""

import torch

from quire.kernels.linear import Apply
from quire.kernels.linear.cpu_native import INT8, CompiledLinear, int8_matrix
from quire.kernels.native import library
from quire.kernels.w8a8 import check_weight
from quire.kernels.w8a8.reference import chunks_of, matmul_chunks

CPU = torch.device("cpu")


def prepare_w8a8(
    weight_NK: torch.Tensor,
    scale_N1: torch.Tensor,
    bias_N: torch.Tensor | None,
    dtype: torch.dtype,
) -> Apply:
    """`matmul_w8a8` of x in `dtype`, bfloat16 or float32, with these weights, by the same bits.

    By the compiled kernel, or without the library by torch, whose products of whole numbers in
    float32 are exact; the weights then take four bytes each.

    Raises:
        ValueError: as of `matmul_w8a8`.
    """
    check_weight(weight_NK, scale_N1, CPU)
    if (native := library()) is not None:
        return CompiledLinear(
            int8_matrix(weight_NK, scale_N1.squeeze(1)),
            bias_N,
            dtype=dtype,
            native=native,
            activation_type=INT8,
        )
    chunks = chunks_of(weight_NK)
    return lambda x_TK: matmul_chunks(x_TK, chunks, scale_N1, bias_N)

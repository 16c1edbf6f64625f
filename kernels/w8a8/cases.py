"""Cases of int8 times int8: rows of every size, zeros, NaN and infinity in small; served shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation
from quire.kernels.int8.cases import int8_case
from quire.kernels.quantize_scaled_float8.cases import activations


def quantize_case(tokens: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        return {"x_TK": activations(tokens, columns, dtype, generator).to(device)}

    return Case(
        name=f"{tokens}x{columns}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance=0.0,
        bytes_moved=tokens * (columns * (dtype.itemsize + 1) + 4),
        flops=4 * tokens * columns,
    )


def matmul_case(
    tokens: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    with_bias: bool = False,
) -> Case:
    """A case of `matmul_int8` whose x has rows of every size; the results are equal to the bit."""
    plain = int8_case(tokens, out_features, in_features, dtype, with_bias=with_bias)

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        x = activations(tokens, in_features, dtype, generator)
        return plain.build(device, generator) | {"x_TK": x.to(device)}

    return Case(
        name=plain.name,
        dtype=dtype,
        build=build,
        tolerance=0.0,
        bytes_moved=plain.bytes_moved,
        flops=plain.flops,
    )


OPERATIONS = (
    Operation(
        name="matmul_w8a8",
        package="w8a8",
        small=(
            matmul_case(1, 1, 32, torch.float32),
            matmul_case(35, 33, 97, torch.float32, with_bias=True),
            matmul_case(67, 33, 1160),
            matmul_case(3, 16, 64, torch.float16),
        ),
        served=tuple(
            matmul_case(tokens, *shape)
            for shape in ((4096, 4096), (14336, 4096))
            for tokens in (1, 8, 32, 128, 512)
        ),
        compiled=tuple(
            matmul_case(tokens, features, 576, with_bias=features == 4096)
            for tokens, features in ((512, 4096), (1, 49152), (128, 4096), (1, 4096))
        ),
        row_inputs=("x_TK",),
    ),
    Operation(
        name="quantize_rows_int8",
        package="w8a8",
        small=(
            quantize_case(1, 1, torch.float32),
            quantize_case(5, 67, torch.float32),
            quantize_case(5, 67, torch.float16),
            quantize_case(4, 4500),
        ),
        served=tuple(
            quantize_case(tokens, columns)
            for columns in (576, 1024, 4096, 14336)
            for tokens in (1, 8, 32, 128, 512)
        ),
        compiled=(quantize_case(8, 4096), quantize_case(8, 14336)),
        row_inputs=("x_TK",),
    ),
)

"""Cases of `dequantize_gguf` and `matmul_gguf`: random blocks with finite scales."""

from types import MappingProxyType
from typing import Any

import torch

from quire.kernels.cases import Case, Operation
from quire.kernels.gguf.encodings import ENCODINGS

SCALES = MappingProxyType(
    {
        "Q4_0": ((0,), 8),
        "Q4_1": ((0, 2), 15),
        "Q5_0": ((0,), 16),
        "Q5_1": ((0, 2), 31),
        "Q8_0": ((0,), 127),
        "IQ4_NL": ((0,), 127),
        "Q2_K": ((80, 82), 15 * 3),
        "Q3_K": ((108,), 32 * 4),
        "Q4_K": ((0, 2), 63 * 15),
        "Q5_K": ((0, 2), 63 * 31),
        "Q6_K": ((208,), 127 * 32),
        "IQ4_XS": ((0,), 32 * 127),
    }
)
"""Where a block has its float16 scales, and the greatest number they multiply."""


def random_blocks(
    rows: int, in_features: int, encoding: str, generator: torch.Generator
) -> torch.Tensor:
    """Weights [rows, in_features] below 2 / sqrt(in_features), as blocks of random bytes."""
    layout = ENCODINGS[encoding]
    shape = (rows, in_features // layout.elements_per_block, layout.block_size)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    offsets, greatest = SCALES[encoding]
    for offset in offsets:
        scale = (torch.rand(shape[:2], generator=generator) + 0.5) / greatest / in_features**0.5
        blocks[..., offset : offset + 2] = scale.half()[..., None].view(torch.uint8)
    return blocks.view(rows, -1)


def dequantize_case(rows: int, in_features: int, encoding: str, dtype: torch.dtype) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        blocks = random_blocks(rows, in_features, encoding, generator)
        return {"weight_bytes": blocks.to(device), "encoding": encoding, "out_dtype": dtype}

    weights, layout = rows * in_features, ENCODINGS[encoding]
    return Case(
        name=f"{rows}x{in_features}-{encoding}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance=0.0,
        bytes_moved=weights * layout.block_size // layout.elements_per_block
        + weights * dtype.itemsize,
        flops=2 * weights,
    )


def matmul_case(
    tokens: int,
    out_features: int,
    in_features: int,
    encoding: str,
    dtype: torch.dtype,
    with_bias: bool = False,
) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        x = torch.randn(tokens, in_features, generator=generator)
        blocks = random_blocks(out_features, in_features, encoding, generator)
        bias = torch.randn(out_features, generator=generator).to(device, dtype)
        return {
            "x_TK": x.to(device, dtype),
            "weight_bytes": blocks.to(device),
            "encoding": encoding,
            "bias_N": bias if with_bias else None,
        }

    layout = ENCODINGS[encoding]
    weight_bytes = out_features * in_features * layout.block_size // layout.elements_per_block
    moved = tokens * (in_features + out_features) + out_features * with_bias
    return Case(
        name=f"{tokens}x{out_features}x{in_features}-{encoding}-{str(dtype)[6:]}"
        f"{'-bias' * with_bias}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 5e-2}[dtype],
        bytes_moved=weight_bytes + moved * dtype.itemsize,
        flops=2 * tokens * out_features * in_features,
    )


SMALL_DEQUANTIZE = tuple(
    dequantize_case(rows, blocks * ENCODINGS[encoding].elements_per_block, encoding, dtype)
    for encoding in ENCODINGS
    for rows, blocks, dtype in ((1, 1, torch.float32), (35, 2, torch.float32), (3, 2, torch.half))
)
SMALL_MATMUL = tuple(
    matmul_case(
        tokens, out_features, blocks * ENCODINGS[encoding].elements_per_block, encoding, dtype, bias
    )
    for encoding in ENCODINGS
    for tokens, out_features, blocks, dtype, bias in (
        (1, 1, 1, torch.float32, False),
        (3, 33, 2, torch.float32, True),
        (67, 33, 1, torch.bfloat16, False),
    )
)
OPERATIONS = (
    Operation(
        name="dequantize_gguf",
        package="gguf",
        small=SMALL_DEQUANTIZE,
        served=tuple(
            dequantize_case(4096, 4096, encoding, torch.bfloat16) for encoding in ENCODINGS
        ),
        compiled=tuple(
            dequantize_case(64, 512, encoding, torch.bfloat16) for encoding in ("Q5_K", "Q6_K")
        ),
    ),
    Operation(
        name="matmul_gguf",
        package="gguf",
        small=SMALL_MATMUL,
        served=(
            *(matmul_case(1, 4096, 4096, encoding, torch.bfloat16) for encoding in ENCODINGS),
            *(matmul_case(tokens, 14336, 4096, "Q4_K", torch.bfloat16) for tokens in (1, 32, 512)),
        ),
        compiled=(
            *(matmul_case(8, 256, 512, encoding, torch.bfloat16) for encoding in ENCODINGS),
            matmul_case(256, 8192, 512, "Q6_K", torch.bfloat16, with_bias=True),
            matmul_case(8, 256, 512, "Q6_K", torch.float32),
        ),
        row_inputs=("x_TK",),
        row_paths=("triton",),
    ),
)

"""Cases of `linear`: `x_TK`, `weight_NK` and `bias_N`, odd sizes in small, and served shapes."""

from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.cases import Case, Operation


def linear_case(
    tokens: int, out_features: int, in_features: int, dtype: torch.dtype, with_bias: bool = False
) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        x = torch.randn(tokens, in_features, generator=generator)
        weight = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
        bias = torch.randn(out_features, generator=generator).to(device, dtype)
        return {
            "x_TK": x.to(device, dtype),
            "weight_NK": weight.to(device, dtype),
            "bias_N": bias if with_bias else None,
        }

    moved = tokens * (in_features + out_features) + out_features * (in_features + with_bias)
    return Case(
        name=f"{tokens}x{out_features}x{in_features}-{str(dtype)[6:]}{'-bias' * with_bias}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 5e-2}[dtype],
        bytes_moved=moved * dtype.itemsize,
        flops=2 * tokens * out_features * in_features,
    )


SMALL_CASES = tuple(
    linear_case(tokens, out_features, in_features, dtype, with_bias)
    for tokens, out_features, in_features in ((1, 1, 1), (3, 70, 65), (65, 130, 96))
    for dtype in (torch.float32, torch.bfloat16)
    for with_bias in (False, True)
)

SERVED_CASES = tuple(
    linear_case(tokens, out_features, in_features, torch.bfloat16)
    for out_features, in_features in (
        (1536, 576),
        (576, 1536),
        (3072, 1024),
        (1024, 3072),
        (49152, 576),
        (6144, 4096),
        (4096, 14336),
        (28672, 4096),
    )
    for tokens in (1, 8, 32, 128, 512)
)
"""For the benchmark: decode steps and a prefill chunk, 135M to 8B; order tokens, N, K."""

ROWS_AND_WIDTH_BY_TILE = (
    (512, 6144),
    (512, 4096),
    (1, 49152),
    (128, 4096),
    (1, 4096),
    (1, 1024),
)
"""One shape for each tile of the 16-bit kernel, from large to small."""


def _torch(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None
) -> torch.Tensor:
    return F.linear(x_TK, weight_NK, bias_N)


CASES = SMALL_CASES + SERVED_CASES
OPERATIONS = (
    Operation(
        name="linear",
        package="linear",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            *(
                linear_case(tokens, out_features, 192, torch.bfloat16)
                for tokens, out_features in ROWS_AND_WIDTH_BY_TILE
            ),
            linear_case(32, 1536, 576, torch.bfloat16, with_bias=True),
            linear_case(32, 1536, 576, torch.float32),
            linear_case(512, 1536, 576, torch.float32),
        ),
        row_inputs=("x_TK",),
        row_paths=("triton",),
        peers={"F.linear": _torch},
    ),
)

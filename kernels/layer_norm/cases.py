"""Cases of `layer_norm`: odd row lengths in small, and served shapes."""

from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.cases import Case, Operation


def norm_case(tokens: int, columns: int, dtype: torch.dtype, with_all: bool = True) -> Case:
    """`with_all`: bias and residual."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        x, residual = torch.randn(2, tokens, columns, generator=generator).to(device, dtype) + 0.5
        weight, bias = torch.rand(2, columns, generator=generator).to(device, dtype)
        return {
            "x_TC": x,
            "weight_C": weight,
            "bias_C": bias if with_all else None,
            "epsilon": 1e-5,
            "residual_TC": residual if with_all else None,
        }

    passes = 4 if with_all else 2
    return Case(
        name=f"{tokens}x{columns}-{str(dtype)[6:]}{'-bias-residual' if with_all else ''}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 4e-6, torch.float16: 8e-3, torch.bfloat16: 6e-2}[dtype],
        bytes_moved=(passes * tokens + 2) * columns * dtype.itemsize,
        flops=8 * tokens * columns,
    )


def _torch(
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
    residual_TC: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x_TC + residual_TC
    return F.layer_norm(total, weight_C.shape, weight_C, bias_C, epsilon), total


SMALL_CASES = tuple(
    norm_case(tokens, columns, dtype, with_all)
    for tokens, columns in ((1, 1), (5, 257))
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for with_all in (False, True)
)
OPERATIONS = (
    Operation(
        name="layer_norm",
        package="layer_norm",
        small=SMALL_CASES,
        served=tuple(norm_case(tokens, 4096, torch.bfloat16) for tokens in (1, 32, 512)),
        compiled=(
            norm_case(8, 16384, torch.bfloat16),
            norm_case(8, 1024, torch.bfloat16, with_all=False),
        ),
        row_inputs=("x_TC", "residual_TC"),
        peers={"F.layer_norm": _torch},
    ),
)

"""Cases of `rms_norm`: odd row lengths in small, and served shapes."""

from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.cases import Case, Operation


def norm_case(tokens: int, columns: int, dtype: torch.dtype, with_residual: bool = True) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        x, residual = torch.randn(2, tokens, columns, generator=generator).to(dtype)
        weight = (torch.rand(columns, generator=generator) + 0.5).to(device, dtype)
        return {
            "x_TC": x.to(device),
            "weight_C": weight,
            "epsilon": 1e-5,
            "residual_TC": residual.to(device) if with_residual else None,
        }

    passes = 4 if with_residual else 2
    return Case(
        name=f"{tokens}x{columns}-{str(dtype)[6:]}{'-residual' if with_residual else ''}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 4e-6, torch.float16: 8e-3, torch.bfloat16: 6e-2}[dtype],
        bytes_moved=(passes * tokens + 1) * columns * dtype.itemsize,
        flops=5 * tokens * columns,
    )


SMALL_CASES = tuple(
    norm_case(tokens, columns, dtype, with_residual)
    for tokens, columns in ((1, 1), (3, 192), (7, 257))
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for with_residual in (False, True)
)

SERVED_CASES = tuple(
    norm_case(tokens, columns, torch.bfloat16)
    for tokens in (1, 32, 512)
    for columns in (192, 576, 1024, 4096)
)
"""For the benchmark: decode steps and a prefill chunk, demo model to 8B."""


def _torch(
    x_TC: torch.Tensor, weight_C: torch.Tensor, epsilon: float, residual_TC: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x_TC + residual_TC
    return F.rms_norm(total, weight_C.shape, weight_C, epsilon), total


CASES = SMALL_CASES + SERVED_CASES
OPERATIONS = (
    Operation(
        name="rms_norm",
        package="rms_norm",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            norm_case(8, 576, torch.bfloat16),
            norm_case(8, 4096, torch.bfloat16, with_residual=False),
        ),
        row_inputs=("x_TC", "residual_TC"),
        peers={"F.rms_norm": _torch},
    ),
)

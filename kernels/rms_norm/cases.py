"""Cases of `rms_norm` and `rms_norm_quantized`: odd row lengths in small, and served shapes."""

import dataclasses
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


def gemma_case(tokens: int, columns: int, dtype: torch.dtype, multiply_before_cast: bool) -> Case:
    """Weights that 1 is added to."""
    plain = norm_case(tokens, columns, dtype)

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        options = {"weight_offset": 1.0, "multiply_before_cast": multiply_before_cast}
        return plain.build(device, generator) | options

    name = f"{plain.name}-offset{'-before-cast' if multiply_before_cast else ''}"
    return dataclasses.replace(plain, name=name, build=build)


def quantized_case(
    tokens: int, columns: int, dtype: torch.dtype, *, is_static: bool, with_residual: bool = True
) -> Case:
    plain = norm_case(tokens, columns, dtype, with_residual)

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        scale = torch.tensor([0.01], device=device) if is_static else None
        return plain.build(device, generator) | {"scale": scale}

    passes = (3 if with_residual else 1) * dtype.itemsize + 1
    return dataclasses.replace(
        plain,
        name=f"{plain.name}-{'static' if is_static else 'dynamic'}",
        build=build,
        # One step of e4m3, where the last bit of the norm decides.
        tolerance=max(plain.tolerance, 2.0**-9),
        relative=2.0**-3,
        bytes_moved=tokens * columns * passes,
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
        small=SMALL_CASES
        + tuple(
            gemma_case(3, 257, dtype, multiply_before_cast)
            for dtype in (torch.float32, torch.bfloat16)
            for multiply_before_cast in (False, True)
        ),
        served=SERVED_CASES,
        compiled=(
            norm_case(8, 576, torch.bfloat16),
            norm_case(8, 4096, torch.bfloat16, with_residual=False),
            gemma_case(8, 16384, torch.bfloat16, True),
        ),
        row_inputs=("x_TC", "residual_TC"),
        peers={"F.rms_norm": _torch},
    ),
    Operation(
        name="rms_norm_quantized",
        package="rms_norm",
        small=tuple(
            quantized_case(3, columns, dtype, is_static=is_static, with_residual=is_static)
            for columns, dtype in ((1, torch.float32), (257, torch.bfloat16), (700, torch.float32))
            for is_static in (False, True)
        ),
        served=tuple(
            quantized_case(tokens, 4096, torch.bfloat16, is_static=False) for tokens in (1, 32, 512)
        ),
        compiled=tuple(
            quantized_case(8, 16384, torch.bfloat16, is_static=is_static)
            for is_static in (False, True)
        ),
        row_inputs=("x_TC", "residual_TC"),
    ),
)

"""Cases of quantization to fp8: odd widths, zeros, NaN and infinity in small, and served shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation
from quire.kernels.checks import FLOATS

ROWS_AND_WIDTHS = tuple(
    (tokens, columns) for columns in (576, 1024, 4096, 14336) for tokens in (1, 8, 32, 128, 512)
)


def activations(
    tokens: int, columns: int, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Rows of very different size; where there are several, one of zeros, and NaN and infinities."""
    size = torch.exp2(torch.randint(-8, 9, (tokens, 1), generator=generator).float())
    x = torch.randn(tokens, columns, generator=generator) * size
    if tokens > 2 and columns > 2:
        x[1] = 0.0
        x[2, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    return x.to(dtype)


def static_case(tokens: int, columns: int, dtype: torch.dtype) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        x = activations(tokens, columns, dtype, generator)
        return {"x_TK": x.to(device), "scale": torch.tensor([0.037], device=device)}

    return Case(
        name=f"{tokens}x{columns}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance=0.0,
        bytes_moved=tokens * columns * (dtype.itemsize + 1),
        flops=2 * tokens * columns,
    )


def dynamic_case(
    tokens: int, columns: int, dtype: torch.dtype, group: int = -1, scale_ub: float | None = None
) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        x = activations(tokens, columns, dtype, generator)
        options = {"group_size_or_per_token": group, "scale_ub": scale_ub}
        return {"x_TK": x.to(device), **options}

    groups = 1 if group == -1 else -(-columns // group)
    return Case(
        name=f"{tokens}x{columns}-{str(dtype)[6:]}"
        + f"-g{group}" * (group != -1)
        + f"-ub{scale_ub}" * (scale_ub is not None),
        dtype=dtype,
        build=build,
        tolerance=0.0,
        bytes_moved=tokens * (columns * (dtype.itemsize + 1) + 4 * groups),
        flops=4 * tokens * columns,
    )


STATIC_SMALL = tuple(
    static_case(tokens, columns, dtype) for tokens, columns in ((1, 1), (5, 67)) for dtype in FLOATS
)
DYNAMIC_SMALL = (
    *(dynamic_case(5, 67, dtype) for dtype in FLOATS),
    dynamic_case(1, 1, torch.float32),
    dynamic_case(5, 300, torch.bfloat16, group=128),
    dynamic_case(3, 96, torch.float32, group=24),
    dynamic_case(4, 5, torch.float32, group=128),
    dynamic_case(4, 130, torch.float32, scale_ub=2.5),
)

OPERATIONS = (
    Operation(
        name="quantize_static_scaled_float8",
        package="quantize_scaled_float8",
        small=STATIC_SMALL,
        served=tuple(static_case(*shape, torch.bfloat16) for shape in ROWS_AND_WIDTHS),
        compiled=(static_case(8, 4096, torch.bfloat16),),
        row_inputs=("x_TK",),
    ),
    Operation(
        name="quantize_dynamic_scaled_float8",
        package="quantize_scaled_float8",
        small=DYNAMIC_SMALL,
        served=tuple(
            dynamic_case(*shape, torch.bfloat16, group)
            for group in (-1, 128)
            for shape in ROWS_AND_WIDTHS
        ),
        compiled=(
            dynamic_case(8, 4096, torch.bfloat16),
            dynamic_case(8, 14336, torch.bfloat16),
            dynamic_case(8, 4096, torch.bfloat16, group=128),
        ),
        row_inputs=("x_TK",),
    ),
)

"""Cases of scaled fp8 products: odd sizes and every kind of scale in small, and served shapes."""

from typing import Any, Literal

import torch

from quire.kernels.cases import Case, Operation
from quire.kernels.float8 import FP8
from quire.kernels.matmul_scaled_float8 import FP8_CAPABILITY
from quire.kernels.matmul_scaled_float8.reference import dynamic_scaled_matmul_reference

Scaling = Literal["one", "row", "column", "block"]
FEATURES_AND_DEPTHS = (
    (1536, 576),
    (3072, 1024),
    (1024, 3072),
    (6144, 4096),
    (4096, 14336),
)
"""N and K, 135M to 8B."""
TOKENS = (1, 8, 32, 128, 512)


def scales_of(
    shape: tuple[int, int], block_rows: int, scaling: Scaling, generator: torch.Generator
) -> torch.Tensor:
    """Scales for a matrix of `shape`, of about 1 / sqrt(K) so that products stay near 1."""
    rows, columns = shape
    scale_shape = {
        "one": (1, 1),
        "row": (rows, 1),
        "column": (1, rows),
        "block": (-(-rows // block_rows), -(-columns // 128)),
    }[scaling]
    size: float = columns**-0.25
    return (torch.rand(scale_shape, generator=generator) + 0.5) * size


def scaled_inputs(
    shape: tuple[int, int, int], scalings: tuple[Scaling, Scaling], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """a [M, K], b [N, K] and their scales, for shape (M, N, K)."""
    rows, features, depth = shape
    a = torch.randn(rows, depth, generator=generator).to(FP8)
    b = torch.randn(features, depth, generator=generator).to(FP8)
    a_scales = scales_of((rows, depth), 1, scalings[0], generator)
    b_scales = scales_of((features, depth), 128, scalings[1], generator)
    return a, b, a_scales, b_scales


def matmul_case(
    shape: tuple[int, int, int],
    scalings: tuple[Scaling, Scaling] = ("row", "row"),
    out_type: torch.dtype = torch.bfloat16,
    with_bias: bool = False,
    names: tuple[str, str, str, str] = ("a_MK", "b_NK", "a_scales", "b_scales"),
) -> Case:
    """A case of (M, N, K) with the scaling of a and of b; `names` are those of the operands."""
    rows, features, depth = shape

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        operands = scaled_inputs(shape, scalings, generator)
        bias = torch.randn(features, generator=generator).to(device, out_type)
        given = {name: tensor.to(device) for name, tensor in zip(names, operands, strict=True)}
        return given | {"out_type": out_type, "bias_N": bias if with_bias else None}

    scale_count = {
        "one": 2,
        "row": rows + features,
        "column": rows + features,
        "block": -(-depth // 128) * (rows + -(-features // 128)),
    }[scalings[1]]
    moved = (rows + features) * depth + rows * features * out_type.itemsize + 4 * scale_count
    return Case(
        name=f"{rows}x{features}x{depth}-{scalings[0]}-{scalings[1]}-{str(out_type)[6:]}"
        + "-bias" * with_bias,
        dtype=FP8,
        build=build,
        tolerance={torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 5e-2}[out_type],
        bytes_moved=moved + with_bias * features * out_type.itemsize,
        flops=2 * rows * features * depth,
    )


def static_case(
    shape: tuple[int, int, int], out_type: torch.dtype = torch.bfloat16, with_bias: bool = False
) -> Case:
    names = ("x_TK", "weight_NK", "input_scale", "weight_scale")
    return matmul_case(shape, ("one", "one"), out_type, with_bias, names)


DYNAMIC_SMALL = (
    matmul_case((1, 1, 1)),
    matmul_case((3, 70, 65), ("one", "row"), torch.float32),
    matmul_case((65, 40, 160), ("row", "row"), torch.float32, with_bias=True),
    matmul_case((65, 130, 300), ("block", "block"), torch.float32),
    matmul_case((2, 130, 128), ("block", "block"), torch.bfloat16, with_bias=True),
    matmul_case((5, 20, 33), ("row", "one"), torch.float16),
    matmul_case((3, 70, 65), ("column", "column"), torch.float32),
)


def _torch(
    a_MK: torch.Tensor,
    b_NK: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    *,
    out_type: torch.dtype,
    bias_N: torch.Tensor | None,
) -> torch.Tensor:
    if b_scales.shape[1] > 1:
        return dynamic_scaled_matmul_reference(
            a_MK, b_NK, a_scales, b_scales, out_type=out_type, bias_N=bias_N
        )
    return torch._scaled_mm(a_MK, b_NK.t(), a_scales, b_scales.t(), bias=bias_N, out_dtype=out_type)


def _torch_static(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    input_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    out_type: torch.dtype,
    bias_N: torch.Tensor | None,
) -> torch.Tensor:
    return _torch(x_TK, weight_NK, input_scale, weight_scale, out_type=out_type, bias_N=bias_N)


OPERATIONS = (
    Operation(
        name="matmul_static_scaled_float8",
        package="matmul_scaled_float8",
        small=(
            static_case((1, 1, 1)),
            static_case((65, 40, 160), torch.float32, with_bias=True),
            static_case((5, 130, 33), torch.float16),
        ),
        served=tuple(
            static_case((tokens, *shape)) for shape in FEATURES_AND_DEPTHS for tokens in TOKENS
        ),
        compiled=(static_case((32, 1536, 576)),),
        row_inputs=("x_TK",),
        row_paths=("triton",),
        peers={"torch._scaled_mm": _torch_static},
        min_capability=FP8_CAPABILITY,
    ),
    Operation(
        name="dynamic_scaled_matmul",
        package="matmul_scaled_float8",
        small=DYNAMIC_SMALL,
        served=tuple(
            matmul_case((tokens, *shape), scalings)
            for scalings in (("row", "row"), ("block", "block"))
            for shape in FEATURES_AND_DEPTHS
            for tokens in TOKENS
        ),
        compiled=tuple(
            matmul_case((tokens, features, 576), scalings, with_bias=features == 1024)
            for scalings in (("row", "row"), ("block", "block"))
            for tokens, features in ((512, 4096), (1, 49152), (128, 4096), (1, 4096), (1, 1024))
        ),
        row_inputs=("a_MK", "a_scales"),
        row_paths=("triton",),
        peers={"torch._scaled_mm, or dequantized in blocks": _torch},
        min_capability=FP8_CAPABILITY,
    ),
)

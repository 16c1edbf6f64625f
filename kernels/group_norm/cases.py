"""Cases of `group_norm`: odd sizes and ranks in small, and shapes of image encoders."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.cases import Case, Operation


def norm_case(
    shape: tuple[int, ...], num_groups: int, dtype: torch.dtype, with_bias: bool = True
) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        weight, bias = torch.rand(2, shape[1], generator=generator).to(device, dtype)
        return {
            "x": (torch.randn(shape, generator=generator) + 0.5).to(device, dtype),
            "num_groups": num_groups,
            "weight_C": weight,
            "bias_C": bias if with_bias else None,
            "epsilon": 1e-5,
        }

    return Case(
        name=f"{'x'.join(map(str, shape))}-by-{num_groups}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 4e-6, torch.float16: 8e-3, torch.bfloat16: 6e-2}[dtype],
        bytes_moved=2 * math.prod(shape) * dtype.itemsize,
        flops=8 * math.prod(shape),
    )


def _torch(
    x: torch.Tensor,
    num_groups: int,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    return F.group_norm(x, num_groups, weight_C, bias_C, epsilon)


SMALL_CASES = (
    norm_case((3, 6, 5, 7), 3, torch.float32),
    norm_case((1, 4, 37, 61), 2, torch.float32, with_bias=False),
    norm_case((2, 8), 4, torch.float32),
    norm_case((3, 6, 35), 2, torch.float16),
    norm_case((3, 6, 35), 1, torch.bfloat16),
)
OPERATIONS = (
    Operation(
        name="group_norm",
        package="group_norm",
        small=SMALL_CASES,
        served=(
            norm_case((1, 320, 64, 64), 32, torch.bfloat16),
            norm_case((8, 512, 32, 32), 32, torch.bfloat16),
        ),
        compiled=(norm_case((1, 320, 64, 64), 32, torch.bfloat16),),
        row_inputs=("x",),
        peers={"F.group_norm": _torch},
    ),
)

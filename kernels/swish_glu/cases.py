"""Cases of `swish_glu`: odd widths in small, and served shapes."""

from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.cases import Case, Operation


def glu_case(tokens: int, features: int, dtype: torch.dtype) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        gate_up = torch.randn(tokens, 2 * features, generator=generator) * 4
        return {"gate_up_T2F": gate_up.to(device, dtype)}

    return Case(
        name=f"{tokens}x{features}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 5e-5, torch.float16: 0.25, torch.bfloat16: 2.0}[dtype],
        bytes_moved=3 * tokens * features * dtype.itemsize,
        flops=5 * tokens * features,
    )


SMALL_CASES = tuple(
    glu_case(tokens, features, dtype)
    for tokens, features in ((1, 1), (3, 704), (5, 1025))
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
)

SERVED_CASES = tuple(
    glu_case(tokens, features, torch.bfloat16)
    for tokens in (1, 32, 512)
    for features in (704, 1536, 3072, 14336)
)
"""For the benchmark: decode steps and a prefill chunk, demo model to 8B."""


def _torch(gate_up_T2F: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up_T2F.chunk(2, -1)
    return F.silu(gate) * up


CASES = SMALL_CASES + SERVED_CASES
OPERATIONS = (
    Operation(
        name="swish_glu",
        package="swish_glu",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(glu_case(8, 1536, torch.bfloat16), glu_case(8, 1536, torch.float32)),
        row_inputs=("gate_up_T2F",),
        peers={"F.silu(gate) * up": _torch},
    ),
)

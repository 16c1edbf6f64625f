"""Cases of the activations: odd widths and every kind in small, and served shapes."""

from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.activations import KINDS
from quire.kernels.cases import Case, Operation

TOLERANCE = {torch.float32: 2e-5, torch.float16: 0.06, torch.bfloat16: 0.5}


def activation_case(tokens: int, features: int, kind: str, dtype: torch.dtype) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        x = torch.randn(tokens, features, generator=generator) * 2
        return {"x_TF": x.to(device, dtype), "kind": kind}

    return Case(
        name=f"{kind}-{tokens}x{features}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance=TOLERANCE[dtype],
        bytes_moved=2 * tokens * features * dtype.itemsize,
        flops=8 * tokens * features,
    )


def gated_case(tokens: int, features: int, kind: str, dtype: torch.dtype) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        gate_up = torch.randn(tokens, 2 * features, generator=generator) * 2
        return {"gate_up_T2F": gate_up.to(device, dtype), "kind": kind}

    return Case(
        name=f"{kind}-{tokens}x{features}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance=TOLERANCE[dtype],
        bytes_moved=3 * tokens * features * dtype.itemsize,
        flops=9 * tokens * features,
    )


def quantized_case(
    tokens: int, features: int, kind: str, dtype: torch.dtype, is_static: bool
) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        gate_up = torch.randn(tokens, 2 * features, generator=generator) * 2
        scale = torch.tensor([0.05], device=device) if is_static else None
        return {"gate_up_T2F": gate_up.to(device, dtype), "kind": kind, "scale": scale}

    return Case(
        name=f"{kind}-{tokens}x{features}-{str(dtype)[6:]}-{'static' if is_static else 'dynamic'}",
        dtype=dtype,
        build=build,
        # One step of e4m3, where the last bit of exp decides.
        tolerance=2.0**-9,
        relative=2.0**-3,
        bytes_moved=tokens * features * (2 * dtype.itemsize + 1),
        flops=12 * tokens * features,
    )


def _torch(gate_up_T2F: torch.Tensor, kind: str) -> torch.Tensor:
    gate, up = gate_up_T2F.chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPERATIONS = (
    Operation(
        name="activation",
        package="activations",
        small=tuple(activation_case(5, 1025, kind, torch.float32) for kind in KINDS)
        + tuple(activation_case(3, 7, "gelu", dtype) for dtype in DTYPES[1:]),
        served=(activation_case(512, 8192, "gelu", torch.bfloat16),),
        compiled=(activation_case(8, 8192, "gelu", torch.bfloat16),),
        row_inputs=("x_TF",),
    ),
    Operation(
        name="gated_activation",
        package="activations",
        small=tuple(gated_case(3, 261, kind, torch.float32) for kind in KINDS)
        + tuple(gated_case(5, 1025, "gelu_tanh", dtype) for dtype in DTYPES[1:]),
        served=tuple(
            gated_case(tokens, 14336, "gelu_tanh", torch.bfloat16) for tokens in (1, 32, 512)
        ),
        compiled=(gated_case(8, 14336, "gelu_tanh", torch.bfloat16),),
        row_inputs=("gate_up_T2F",),
        peers={"F.gelu(gate) * up": _torch},
    ),
    Operation(
        name="gated_activation_quantized",
        package="activations",
        small=tuple(
            quantized_case(3, features, kind, dtype, is_static)
            for features, kind, dtype in (
                (5000, "silu", torch.bfloat16),
                (261, "gelu", torch.float32),
            )
            for is_static in (False, True)
        ),
        served=tuple(
            quantized_case(tokens, 14336, "silu", torch.bfloat16, False) for tokens in (1, 32, 512)
        ),
        compiled=tuple(
            quantized_case(8, 14336, "silu", torch.bfloat16, is_static)
            for is_static in (False, True)
        ),
        row_inputs=("gate_up_T2F",),
    ),
)

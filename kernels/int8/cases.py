"""Cases of the int8 functions: random numbers with scales of trained weights."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation


def int8_case(
    tokens: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    with_bias: bool = False,
) -> Case:
    """A case of the matmul; without tokens one of the dequantization to `dtype`."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        shape = (out_features, in_features)
        weight = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
        spread = torch.rand(out_features, 1, generator=generator)
        scale = (0.5 + spread) / 64 / in_features**0.5
        inputs: dict[str, Any] = {}
        if tokens:
            inputs["x_TK"] = torch.randn(tokens, in_features, generator=generator).to(device, dtype)
        inputs |= {"weight_NK": weight.to(device), "scale_N1": scale.to(device)}
        if tokens:
            bias = torch.randn(out_features, generator=generator).to(device, dtype)
            inputs["bias_N"] = bias if with_bias else None
        else:
            inputs["out_dtype"] = dtype
        return inputs

    weights = out_features * in_features
    activations = tokens * (in_features + out_features) if tokens else weights
    return Case(
        name=f"{tokens}x{out_features}x{in_features}-{str(dtype)[6:]}{'-bias' * with_bias}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 5e-2}[dtype]
        if tokens
        else 0.0,
        bytes_moved=weights + 4 * out_features + activations * dtype.itemsize,
        flops=2 * max(tokens, 1) * weights,
    )


OPERATIONS = (
    Operation(
        name="matmul_int8",
        package="int8",
        small=(
            int8_case(1, 1, 32, torch.float32),
            int8_case(35, 33, 97, torch.float32, with_bias=True),
            int8_case(67, 33, 160),
            int8_case(3, 16, 64, torch.float16),
        ),
        served=tuple(
            int8_case(tokens, *shape)
            for shape in ((4096, 4096), (14336, 4096))
            for tokens in (1, 32, 512)
        ),
        compiled=(
            int8_case(8, 256, 512),
            int8_case(256, 8192, 512, with_bias=True),
            int8_case(8, 256, 512, torch.float32),
        ),
        row_inputs=("x_TK",),
        row_paths=("triton",),
    ),
    Operation(
        name="dequantize_int8",
        package="int8",
        small=(
            int8_case(0, 1, 32, torch.float32),
            int8_case(0, 35, 97, torch.float32),
            int8_case(0, 3, 128),
        ),
        served=(int8_case(0, 4096, 4096),),
        compiled=(int8_case(0, 256, 512),),
    ),
)

"""Cases of the MXFP4 and NVFP4 functions: random codes with scales of trained weights."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation
from quire.kernels.fp4.formats import MXFP4_GROUP, NVFP4_GROUP


def random_weight(
    out_features: int, in_features: int, is_nvidia: bool, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The tensors of a weight of about 1 / sqrt(in_features)."""
    shape = (out_features, in_features // 2)
    weight = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    group = NVFP4_GROUP if is_nvidia else MXFP4_GROUP
    spread = torch.rand(out_features, in_features // group, generator=generator)
    if is_nvidia:
        scale_2 = torch.tensor(1 / 64 / in_features**0.5)
        return {
            "weight": weight,
            "weight_scale": (spread * 40).to(torch.float8_e4m3fn),
            "weight_scale_2": scale_2,
        }
    exponent = 124 - torch.tensor(in_features).log2().div(2).round() + spread.mul(3).floor()
    return {"weight": weight, "weight_scale": exponent.to(torch.uint8)}


def fp4_case(
    tokens: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    *,
    is_nvidia: bool,
    with_bias: bool = False,
) -> Case:
    """A case of a matmul; without tokens one of the dequantization to `dtype`."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        tensors = random_weight(out_features, in_features, is_nvidia, generator)
        inputs: dict[str, Any] = {}
        if tokens:
            inputs["x_TK"] = torch.randn(tokens, in_features, generator=generator).to(device, dtype)
        inputs |= {name: tensor.to(device) for name, tensor in tensors.items()}
        if tokens:
            bias = torch.randn(out_features, generator=generator).to(device, dtype)
            inputs["bias_N"] = bias if with_bias else None
        else:
            inputs["out_dtype"] = dtype
        return inputs

    weights = out_features * in_features
    activations = tokens * (in_features + out_features) if tokens else weights
    group = NVFP4_GROUP if is_nvidia else MXFP4_GROUP
    return Case(
        name=f"{tokens}x{out_features}x{in_features}-{str(dtype)[6:]}{'-bias' * with_bias}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 5e-2}[dtype]
        if tokens
        else 0.0,
        bytes_moved=weights // 2 + weights // group + activations * dtype.itemsize,
        flops=2 * max(tokens, 1) * weights,
    )


def operations(name: str, is_nvidia: bool) -> tuple[Operation, Operation]:
    def case(*shape: int, dtype: torch.dtype = torch.bfloat16, with_bias: bool = False) -> Case:
        tokens, out_features, in_features = shape
        return fp4_case(
            tokens, out_features, in_features, dtype, is_nvidia=is_nvidia, with_bias=with_bias
        )

    return (
        Operation(
            name=f"matmul_{name}",
            package="fp4",
            small=(
                case(1, 1, 32, dtype=torch.float32),
                case(35, 33, 96, dtype=torch.float32, with_bias=True),
                case(67, 33, 160),
                case(3, 16, 64, dtype=torch.float16),
            ),
            served=tuple(
                case(tokens, *shape)
                for shape in ((4096, 4096), (14336, 4096))
                for tokens in (1, 32, 512)
            ),
            compiled=(
                case(8, 256, 512),
                case(256, 8192, 512, with_bias=True),
            ),
            row_inputs=("x_TK",),
            row_paths=("triton",),
        ),
        Operation(
            name=f"dequantize_{name}",
            package="fp4",
            small=(
                case(0, 1, 32, dtype=torch.float32),
                case(0, 35, 96, dtype=torch.float32),
                case(0, 3, 128),
            ),
            served=(case(0, 4096, 4096),),
            compiled=(case(0, 256, 512),),
        ),
    )


OPERATIONS = (*operations("mxfp4", is_nvidia=False), *operations("nvfp4", is_nvidia=True))

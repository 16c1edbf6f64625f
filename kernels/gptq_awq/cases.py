"""Cases of the GPTQ and AWQ functions: random words, every group size, with and without order."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation


def random_layer(
    out_features: int,
    in_features: int,
    group_size: int,
    generator: torch.Generator,
    *,
    is_awq: bool = False,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Any]:
    """qweight, qzeros, scales and group_size with weights below 2 / sqrt(in_features)."""
    groups = 1 if group_size == -1 else in_features // group_size

    def words(rows: int, columns: int) -> torch.Tensor:
        shape = (rows, columns)
        return torch.randint(-(2**31), 2**31, shape, generator=generator).int()

    scales = (torch.rand(groups, out_features, generator=generator) + 0.5) / 8 / in_features**0.5
    is_packed_along_k = not is_awq
    return {
        "qweight": words(in_features // 8, out_features)
        if is_packed_along_k
        else words(in_features, out_features // 8),
        "qzeros": words(groups, out_features // 8),
        "scales": scales.to(dtype),
        "group_size": group_size,
    }


def int4_case(
    name: str,
    shape: tuple[int, int, int],
    group_size: int,
    dtype: torch.dtype,
    *,
    is_awq: bool = False,
    is_symmetric: bool = False,
    has_order: bool = False,
    zero_offset: int | None = None,
) -> Case:
    """A case of T, N, K; without tokens (T = 0) one of the dequantization to `dtype`."""
    tokens, out_features, in_features = shape

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        layer = random_layer(out_features, in_features, group_size, generator, is_awq=is_awq)
        if is_symmetric:
            layer["qzeros"] = None
        if has_order:
            layer["perm_idx"] = torch.randperm(in_features, generator=generator).int()
        if zero_offset is not None:
            layer["zero_offset"] = zero_offset
        if tokens:
            x = torch.randn(tokens, in_features, generator=generator).to(dtype)
            bias = torch.randn(out_features, generator=generator).to(dtype)
            layer = {"x_TK": x, "bias_N": bias if tokens > 1 else None} | layer
        else:
            layer["out_dtype"] = dtype
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in layer.items()}

    weights = out_features * in_features
    activations = tokens * (in_features + out_features) if tokens else weights
    group = in_features if group_size == -1 else group_size
    return Case(
        name=f"{name}-{'x'.join(map(str, shape))}-g{group_size}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 5e-2}[dtype]
        if tokens
        else 0.0,
        bytes_moved=weights // 2 + weights // group * 5 // 2 + activations * dtype.itemsize,
        flops=2 * max(tokens, 1) * weights,
    )


FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SMALL_GPTQ = (
    int4_case("order", (35, 40, 192), 32, FP32, has_order=True),
    int4_case("one-token", (1, 8, 64), 64, FP32),
    int4_case("whole-k", (3, 40, 72), -1, FP32, zero_offset=0),
    int4_case("symmetric", (67, 37, 256), 128, BF16, is_symmetric=True),
    int4_case("fp16", (2, 16, 128), 64, FP16),
)
SMALL_AWQ = (
    int4_case("awq", (35, 40, 192), 32, FP32, is_awq=True),
    int4_case("one-token", (1, 8, 64), 64, FP32, is_awq=True),
    int4_case("whole-k", (3, 40, 70), -1, FP32, is_awq=True),
    int4_case("awq", (67, 40, 256), 128, BF16, is_awq=True),
    int4_case("fp16", (2, 16, 128), 64, FP16, is_awq=True),
)
DEQUANTIZE_GPTQ = (
    int4_case("order", (0, 40, 192), 32, FP32, has_order=True),
    int4_case("whole-k", (0, 40, 72), -1, FP32, zero_offset=0),
    int4_case("symmetric", (0, 37, 256), 128, BF16, is_symmetric=True),
)
DEQUANTIZE_AWQ = (
    int4_case("awq", (0, 40, 192), 32, FP32, is_awq=True),
    int4_case("whole-k", (0, 40, 70), -1, FP32, is_awq=True),
    int4_case("awq", (0, 40, 256), 64, FP16, is_awq=True),
)


def served(is_awq: bool) -> tuple[Case, ...]:
    """For the benchmark: the layers of an 8B model."""
    return tuple(
        int4_case("served", (tokens, *shape), 128, BF16, is_awq=is_awq)
        for shape in ((4096, 4096), (14336, 4096))
        for tokens in (1, 32, 512)
    )


OPERATIONS = (
    Operation(
        name="matmul_gptq",
        package="gptq_awq",
        small=SMALL_GPTQ,
        served=served(is_awq=False),
        compiled=(
            int4_case("g128", (8, 256, 512), 128, BF16),
            int4_case("order", (256, 8192, 512), 32, FP16, has_order=True),
            int4_case("fp32", (8, 256, 512), 128, FP32),
        ),
        row_inputs=("x_TK",),
        row_paths=("triton",),
    ),
    Operation(
        name="matmul_awq",
        package="gptq_awq",
        small=SMALL_AWQ,
        served=served(is_awq=True),
        compiled=(
            int4_case("g128", (8, 256, 512), 128, BF16, is_awq=True),
            int4_case("g32", (256, 8192, 512), 32, FP16, is_awq=True),
        ),
        row_inputs=("x_TK",),
        row_paths=("triton",),
    ),
    Operation(
        name="dequantize_gptq",
        package="gptq_awq",
        small=DEQUANTIZE_GPTQ,
        served=(int4_case("served", (0, 4096, 4096), 128, BF16),),
        compiled=(int4_case("order", (0, 256, 512), 128, BF16, has_order=True),),
    ),
    Operation(
        name="dequantize_awq",
        package="gptq_awq",
        small=DEQUANTIZE_AWQ,
        served=(int4_case("served", (0, 4096, 4096), 128, BF16, is_awq=True),),
        compiled=(int4_case("g128", (0, 256, 512), 128, BF16, is_awq=True),),
    ),
)

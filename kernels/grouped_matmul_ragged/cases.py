"""Cases of the grouped matmuls: every option in small, and the experts of served models."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation
from quire.kernels.moe_create_indices.reference import moe_create_indices_reference

GPT_OSS: dict[str, Any] = {"interleaved": True, "alpha": 1.702, "limit": 7.0, "up_offset": 1.0}
SCALES = ("expert", "column", "block")


def random_scale(kind: str, shape: tuple[int, int, int], generator: torch.Generator) -> Any:
    """Scales that bring e4m3 values of up to 448 to the size of 1 / sqrt(K)."""
    experts, rows, columns = shape
    sizes = {
        "expert": (experts, 1, 1),
        "column": (experts, rows, 1),
        "block": (experts, -(-rows // 128), -(-columns // 128)),
    }
    return (torch.rand(sizes[kind], generator=generator) + 0.5) / (100 * columns**0.5)


def grouped_case(
    tokens: int,
    top_k: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    fp8_scale: str = "",
    with_bias: bool = False,
    with_order: bool = False,
    foreign: int = 0,
    options: dict[str, Any] | None = None,
) -> Case:
    """`tokens` with `top_k` experts each; matrices of `shape` [E, N, K]; `options` are passed on.

    Every `foreign`-th pair has an expert of another device.
    """
    experts, rows, columns = shape
    pairs = tokens * top_k

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        scores = torch.rand(tokens, experts, generator=generator)
        ids = scores.topk(top_k, -1).indices.flatten().int()
        if foreign:
            ids[::foreign] = -1
        order, starts, _, expert_ids, _ = moe_create_indices_reference(ids, experts)
        x = torch.randn(tokens if with_order else pairs, columns, generator=generator)
        weight = torch.randn(shape, generator=generator) / columns**0.5
        if fp8_scale:
            stored = (weight * 100 * columns**0.5).to(torch.float8_e4m3fn)
            scale = random_scale(fp8_scale, shape, generator).to(device)
        else:
            stored, scale = weight.to(dtype), None
        bias = torch.randn(experts, rows, generator=generator)
        return {
            "hidden_states": x.to(device, dtype),
            "weight": stored.to(device),
            "expert_start_indices": starts.to(device),
            "expert_ids": expert_ids.to(device),
            "bias": bias.to(device, dtype) if with_bias else None,
            "weight_scale": scale,
            "token_expert_order": order.to(device) if with_order else None,
            "top_k": top_k if with_order else 1,
            **(options or {}),
        }

    name = f"{tokens}x{top_k}-of-{experts}x{rows}x{columns}-{str(dtype)[6:]}"
    name += f"-fp8-{fp8_scale}" * bool(fp8_scale) + "-bias" * with_bias + "-order" * with_order
    name += "-foreign" * bool(foreign) + "-gpt-oss" * bool(options)
    matrix_bytes = rows * columns * (1 if fp8_scale else dtype.itemsize)
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 4e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype],
        relative={torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype],
        bytes_moved=min(experts, pairs) * matrix_bytes + pairs * (rows + columns) * dtype.itemsize,
        flops=2 * pairs * rows * columns,
    )


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SMALL_MATMULS = (
    grouped_case(1, 1, (1, 1, 1), F32),
    grouped_case(9, 2, (4, 70, 65), F32, with_bias=True, with_order=True),
    grouped_case(40, 2, (3, 70, 40), BF16, foreign=5),
    grouped_case(5, 3, (8, 33, 96), F16, with_bias=True),
    grouped_case(5, 2, (3, 140, 130), BF16, fp8_scale="block"),
    grouped_case(5, 2, (3, 30, 66), F32, fp8_scale="column", with_order=True),
    grouped_case(5, 2, (3, 30, 66), F16, fp8_scale="expert", with_bias=True),
)
SMALL_SWIGLUS = (
    grouped_case(1, 1, (1, 2, 1), F32),
    grouped_case(9, 2, (4, 70, 65), F32, with_bias=True, options=GPT_OSS),
    grouped_case(40, 2, (3, 70, 40), BF16, foreign=5, with_order=True),
    grouped_case(5, 3, (8, 34, 96), F16, with_bias=True),
    grouped_case(5, 2, (3, 280, 130), BF16, fp8_scale="block", options=GPT_OSS),
    grouped_case(5, 2, (3, 30, 66), F32, fp8_scale="column", with_order=True),
    grouped_case(5, 2, (3, 30, 66), F16, fp8_scale="expert", options=GPT_OSS),
)

GATE_UPS = (("qwen3-30b", 8, (128, 1536, 2048)), ("gpt-oss-20b", 4, (32, 5760, 2880)))
DOWNS = (("qwen3-30b", 8, (128, 2048, 768)), ("gpt-oss-20b", 4, (32, 2880, 2880)))
SERVED_TOKENS = (1, 32, 512)
"""For the benchmark: decode steps and a prefill chunk."""


def compiled_cases(rows: int, options: dict[str, Any]) -> tuple[Case, ...]:
    """Widths of Mixtral, Qwen3-30B-A3B and GPT-OSS; the number of experts is no constant."""
    return (
        grouped_case(16, 1, (1, 256, 14336), BF16, with_order=True),
        grouped_case(16, 2, (2, 2880, 2880), BF16, with_bias=True, options=options),
        grouped_case(16, 2, (2, rows, 2048), BF16, fp8_scale="block"),
        grouped_case(16, 2, (2, rows, 2048), BF16, fp8_scale="column", with_order=True),
        grouped_case(16, 2, (2, rows, 512), F32),
    )


OPERATIONS = (
    Operation(
        name="grouped_matmul_ragged",
        package="grouped_matmul_ragged",
        small=SMALL_MATMULS,
        served=tuple(
            grouped_case(tokens, top_k, shape, BF16)
            for _, top_k, shape in DOWNS
            for tokens in SERVED_TOKENS
        ),
        compiled=compiled_cases(2048, {}),
    ),
    Operation(
        name="grouped_matmul_swiglu_ragged",
        package="grouped_matmul_ragged",
        small=SMALL_SWIGLUS,
        served=tuple(
            grouped_case(tokens, top_k, shape, BF16, with_order=True)
            for _, top_k, shape in GATE_UPS
            for tokens in SERVED_TOKENS
        ),
        compiled=compiled_cases(1536, GPT_OSS),
    ),
)

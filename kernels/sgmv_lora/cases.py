"""Cases of the LoRA ops: mixed ranks and rows without an adapter in small, and served shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation

NO_ADAPTER = -1


def random_lora(
    lengths: tuple[int, ...],
    ids: tuple[int, ...],
    ranks: tuple[int, ...],
    shape: tuple[int, int],
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    parts: int = 0,
) -> dict[str, torch.Tensor]:
    """Inputs by name; A [.., parts, R, K] if parts > 0. What lies beyond a rank is NaN."""
    features, columns = shape
    adapters, max_rank = len(ranks), max(ranks)
    size = (adapters, max(parts, 1), max_rank, columns)
    lora_a = torch.randn(size, generator=generator) / columns**0.5
    lora_b = torch.randn(adapters, features, max_rank, generator=generator) / max_rank**0.5
    for adapter, rank in enumerate(ranks):
        lora_a[adapter, :, rank:] = torch.nan
        lora_b[adapter, :, rank:] = torch.nan
    tokens = sum(lengths)
    wide = {
        "input": torch.randn(tokens, columns, generator=generator),
        "lora_a": lora_a if parts else lora_a[:, 0],
        "lora_b": lora_b,
        "y": torch.randn(tokens, features, generator=generator),
        "bias": torch.randn(adapters, features, generator=generator),
    }
    return {
        **{name: value.to(dtype).contiguous() for name, value in wide.items()},
        "lora_ids": torch.tensor(ids, dtype=torch.int32),
        "lora_ranks": torch.tensor(ranks, dtype=torch.int32),
        "input_row_offsets": torch.tensor([0, *lengths]).cumsum(0).int(),
        "scaling": torch.rand(adapters, generator=generator) + 0.5,
    }


def lora_case(
    lengths: tuple[int, ...],
    ids: tuple[int, ...],
    ranks: tuple[int, ...],
    shape: tuple[int, int],
    dtype: torch.dtype,
    *,
    parts: int = 0,
    q_features: int = 0,
    with_bias: bool = False,
) -> Case:
    """`shape` is (N, K); with `parts` 1 or 3 for the qkv op, whose q has `q_features` columns."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        drawn = random_lora(lengths, ids, ranks, shape, dtype, generator, parts=parts)
        inputs: dict[str, Any] = {name: value.to(device) for name, value in drawn.items()}
        if not with_bias:
            inputs |= {"bias": None, "scaling": inputs["scaling"] if parts else None}
        if parts:
            inputs |= {"qkv": inputs.pop("y"), "q_features": q_features}
        return inputs

    features, columns = shape
    served = [length for length, adapter in zip(lengths, ids, strict=True) if adapter >= 0]
    rank = max(ranks)
    moved = sum(served) * (columns + 2 * features)
    moved += len({adapter for adapter in ids if adapter >= 0}) * rank * (columns + features)
    return Case(
        name=f"{sum(lengths)}-in-{len(lengths)}x{features}x{columns}r{rank}-{str(dtype)[6:]}"
        f"{'-bias' * with_bias}{f'-parts{parts}' if parts else ''}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 0.12}[dtype],
        bytes_moved=moved * dtype.itemsize,
        flops=2 * sum(served) * rank * (columns + features),
    )


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SMALL_LORAS = (
    lora_case((1,), (0,), (1,), (1, 1), F32),
    lora_case((1, 1, 3, 20), (1, NO_ADAPTER, 0, 1), (3, 8), (70, 65), F32, with_bias=True),
    lora_case((1, 1, 2), (0, 2, 1), (20, 0, 5), (64, 1100), BF16),
    lora_case((0, 17, 1), (1, 0, 7), (16, 4), (40, 96), F16, with_bias=True),
)
SMALL_QKVS = (
    lora_case((1, 1, 3), (1, NO_ADAPTER, 0), (3, 8), (72, 65), F32, parts=3, q_features=40),
    lora_case((2, 18), (0, 1), (5, 16), (96, 96), BF16, parts=1, q_features=64, with_bias=True),
    lora_case((1, 2), (0, 1), (5, 16), (40, 33), F16, parts=3, q_features=40),
)


def served_cases(shape: tuple[int, int], parts: int, q_features: int) -> tuple[Case, ...]:
    """Decode steps of 1 and 32 sequences, and a prefill chunk of two, with 8 adapters."""
    ranks = (16, 8, 16, 64, 32, 16, 8, 16)
    batches = (
        ((1,), (3,)),
        ((1,) * 32, tuple(i % 9 - 1 for i in range(32))),
        ((200, 312), (0, 3)),
    )
    return tuple(
        lora_case(lengths, ids, ranks, shape, BF16, parts=parts, q_features=q_features)
        for lengths, ids in batches
    )


OPERATIONS = (
    Operation(
        name="sgmv_lora_kernel",
        package="sgmv_lora",
        small=SMALL_LORAS,
        served=served_cases((4096, 4096), 0, 0),
        compiled=(
            lora_case((1,) * 8, (0,) * 8, (16, 8), (4096, 4096), BF16),
            lora_case((1,) * 8, (0,) * 8, (256, 8), (2880, 2880), BF16, with_bias=True),
            lora_case((1,) * 8, (0,) * 8, (16, 8), (576, 1536), F32),
        ),
        mutates=("y",),
    ),
    Operation(
        name="sgmv_qkv_lora_kernel",
        package="sgmv_lora",
        small=SMALL_QKVS,
        served=served_cases((6144, 4096), 3, 4096),
        compiled=(
            lora_case((1,) * 8, (0,) * 8, (16, 8), (6144, 4096), BF16, parts=3, q_features=4096),
        ),
        mutates=("qkv",),
    ),
)

"""Cases of logits processing: odd vocabularies, free slots and ids outside in small."""

from typing import Any

import torch

from quire.kernels.cases import BuildInputs, Case, Operation


def _case(name: str, build: BuildInputs, bytes_moved: int, tolerance: float = 0.0) -> Case:
    return Case(name, torch.float32, build, tolerance, bytes_moved, 0)


def _entries(
    rows: int, each: int, vocabulary: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `each` distinct tokens for each row, some slots free, and the offsets of the rows."""
    tokens = [
        torch.randperm(vocabulary + 2, generator=generator)[: each - row % 3] - 1
        for row in range(rows)
    ]
    offsets = torch.tensor([0, *(len(one) for one in tokens)]).cumsum(0)
    return torch.cat(tokens).int(), offsets.int()


def penalties_case(rows: int, each: int, vocabulary: int, with_tensors: bool) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        logits = 4 * torch.randn(rows, vocabulary, generator=generator)
        tokens, offsets = _entries(rows, each, vocabulary, generator)
        counts = torch.randint(0, 5, tokens.shape, generator=generator, dtype=torch.int32)
        options: dict[str, Any] = {"frequency_penalty": 0.5, "repetition_penalty": 1.3}
        if with_tensors:
            drawn = torch.rand(3, rows, generator=generator) + 0.5
            names = ("frequency_penalty", "presence_penalty", "repetition_penalty")
            options = {
                name: value.to(device) for name, value in zip(names, drawn.clone(), strict=True)
            }
        return {
            "logits_buffer": logits.to(device),
            "frequency_data": torch.stack((tokens, counts), 1).to(device),
            "frequency_offsets": offsets.to(device),
        } | options

    name = f"{rows}x{each}-of-{vocabulary}{'-tensors' if with_tensors else ''}"
    return _case(name, build, 16 * rows * each, 2e-6)


def update_case(rows: int, each: int, vocabulary: int) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        held, offsets = _entries(rows, each, vocabulary, generator)
        counts = torch.randint(0, 5, held.shape, generator=generator, dtype=torch.int32)
        return {
            "frequency_data": torch.stack((held, counts), 1).to(device),
            "frequency_offsets": offsets.to(device),
            "tokens": torch.randint(
                -1, vocabulary, (rows,), generator=generator, dtype=torch.int32
            ).to(device),
        }

    return _case(f"{rows}x{each}-of-{vocabulary}", build, 8 * rows * each)


def scatter_case(rows: int, columns: int, count: int, dtype: torch.dtype) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        row = torch.randint(-1, rows + 1, (count,), generator=generator, dtype=torch.int32)
        column = torch.randint(-1, columns + 1, (count,), generator=generator, dtype=torch.int32)
        return {
            "data": torch.randn(rows, columns, generator=generator).to(device, dtype),
            "indices": torch.stack((row, column), 1).to(device),
            "fill_val": -torch.inf,
        }

    return _case(f"{count}-of-{rows}x{columns}-{str(dtype)[6:]}", build, 12 * count)


def bitmask_case(rows: int, vocabulary: int, words: int, with_rows: bool) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        bits = torch.randint(-(2**31), 2**31, (rows, words), generator=generator)
        some = torch.tensor([rows - 1, -1, 0], dtype=torch.int32, device=device)
        return {
            "logits": torch.randn(rows, vocabulary, generator=generator).to(device),
            "bitmask": bits.to(device, torch.int32),
            "rows": some if with_rows else None,
        }

    name = f"{rows}x{vocabulary}-{words}-words{'-rows' if with_rows else ''}"
    return _case(name, build, 4 * rows * vocabulary)


def bias_case(rows: int, each: int, vocabulary: int) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        tokens, offsets = _entries(rows, each, vocabulary, generator)
        return {
            "logits": torch.randn(rows, vocabulary, generator=generator).to(device),
            "tokens": tokens.to(device),
            "bias": torch.randn(len(tokens), generator=generator).to(device),
            "offsets": offsets.to(device),
        }

    return _case(f"{rows}x{each}-of-{vocabulary}", build, 16 * rows * each)


def logits_case(rows: int, vocabulary: int, cap: float | None = None) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        logits = 8 * torch.randn(rows, vocabulary, generator=generator)
        # Rounded, so that rows have equal greatest logits.
        inputs: dict[str, Any] = {"logits": logits.bfloat16().float().to(device)}
        return inputs if cap is None else inputs | {"cap": cap}

    moved = 4 * rows * vocabulary * (1 if cap is None else 2)
    return _case(f"{rows}x{vocabulary}", build, moved, 1e-5)


OPERATIONS = (
    Operation(
        name="apply_penalties_to_logits",
        package="logits_processing",
        small=(penalties_case(3, 40, 97, False), penalties_case(5, 1500, 3001, True)),
        served=(penalties_case(64, 1000, 151936, True),),
        compiled=(penalties_case(8, 100, 32000, True),),
        mutates=("logits_buffer",),
    ),
    Operation(
        name="update_frequency_data",
        package="logits_processing",
        small=(update_case(6, 12, 9), update_case(2, 2100, 3000)),
        served=(update_case(64, 1000, 151936),),
        compiled=(update_case(8, 100, 32000),),
        mutates=("frequency_data",),
    ),
    Operation(
        name="scatter_set_constant",
        package="logits_processing",
        small=tuple(scatter_case(5, 37, 60, d) for d in (torch.float32, torch.bfloat16)),
        served=(scatter_case(64, 151936, 512, torch.float32),),
        compiled=(scatter_case(8, 32000, 100, torch.float32),),
        mutates=("data",),
    ),
    Operation(
        name="apply_token_bitmask",
        package="logits_processing",
        small=(
            bitmask_case(3, 5000, 157, False),
            bitmask_case(4, 97, 3, True),
            bitmask_case(2, 33, 5, False),
        ),
        served=(bitmask_case(64, 151936, 4748, False),),
        compiled=(bitmask_case(8, 32000, 1000, True),),
        mutates=("logits",),
    ),
    Operation(
        name="apply_logit_bias",
        package="logits_processing",
        small=(bias_case(4, 30, 97), bias_case(2, 1500, 3001)),
        served=(bias_case(64, 300, 151936),),
        compiled=(bias_case(8, 100, 32000),),
        mutates=("logits",),
    ),
    Operation(
        name="logits_soft_cap",
        package="logits_processing",
        small=(logits_case(3, 4099, cap=30.0), logits_case(2, 1, cap=5.0)),
        served=(logits_case(64, 262144, cap=30.0),),
        compiled=(logits_case(8, 32000, cap=30.0),),
        row_inputs=("logits",),
    ),
    Operation(
        name="greedy_with_logprobs",
        package="logits_processing",
        small=(logits_case(5, 4099), logits_case(2, 1)),
        served=tuple(logits_case(rows, 151936) for rows in (1, 64)),
        compiled=(logits_case(8, 151936),),
        row_inputs=("logits",),
    ),
)

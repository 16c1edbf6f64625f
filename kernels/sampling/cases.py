"""Cases of `sample_tokens`: `logits_RV` and `inputs`; every filter in small, and served sizes."""

from typing import Any

import numpy as np
import torch

from quire.kernels.cases import Case, Operation
from quire.kernels.sampling.inputs import SamplingInputs


def uniform_inputs(
    rows: int,
    temperature: float = 1.0,
    top_k: int = -1,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> SamplingInputs:
    """The same parameters in every row, at positions 0, 1, ..."""
    return SamplingInputs(
        np.full(rows, temperature, np.float32),
        np.full(rows, top_k, np.int32),
        np.full(rows, top_p, np.float32),
        np.full(rows, min_p, np.float32),
        np.full(rows, seed, np.int64),
        np.zeros(rows, np.int32),
        np.arange(rows, dtype=np.int32),
    )


def sampling_case(name: str, rows: int, vocabulary: int, **parameters: Any) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        logits = 3 * torch.randn(rows, vocabulary, generator=generator)
        return {"logits_RV": logits.to(device), "inputs": uniform_inputs(rows, **parameters)}

    return Case(
        name=f"{name}-{rows}x{vocabulary}",
        dtype=torch.float32,
        build=build,
        tolerance=0.0,
        bytes_moved=4 * rows * vocabulary,
        flops=0,
    )


SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("greedy", {"temperature": 0.0}),
    ("plain", {"temperature": 0.8}),
    ("top-k", {"top_k": 20}),
    ("top-p", {"top_p": 0.9}),
    ("min-p", {"min_p": 0.05}),
    ("all", {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.01}),
)

SMALL_CASES = tuple(
    sampling_case(name, 2, vocabulary, **setting)
    for name, setting in SETTINGS
    for vocabulary in (1, 1000)
)

SERVED_CASES = tuple(
    sampling_case(name, rows, vocabulary, **setting)
    for name, setting in SETTINGS
    for rows, vocabulary in ((1, 49152), (32, 49152), (1, 151936), (32, 151936))
)
"""For the benchmark."""


def fused_case(rows: int, vocabulary: int, with_tensors: bool = True) -> Case:
    """Every filter in one row or another, some rows greedy."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        logits = 3 * torch.randn(rows, vocabulary, generator=generator)
        if not with_tensors:
            return {"logits": logits.to(device), "top_k": 40, "top_p": 0.9, "seed": 11}
        index = torch.arange(rows)
        options = {
            "top_k": torch.tensor((-1, 20, 3, 0, 100))[index % 5].int(),
            "temperature": torch.tensor((0.7, 1.0, 0.0, 1.3))[index % 4],
            "top_p": torch.tensor((0.9, 1.0, 0.95))[index % 3],
            "min_p": torch.tensor((0.0, 0.05))[index % 2],
            "seed": torch.randint(2**62, (rows,), generator=generator),
            "position": index.int(),
        }
        return {"logits": logits.to(device)} | {k: v.to(device) for k, v in options.items()}

    return Case(
        name=f"{'tensors' if with_tensors else 'numbers'}-{rows}x{vocabulary}",
        dtype=torch.float32,
        build=build,
        tolerance=0.0,
        bytes_moved=4 * rows * vocabulary,
        flops=0,
    )


CASES = SMALL_CASES + SERVED_CASES
OPERATIONS = (
    Operation(
        name="sample_tokens",
        package="sampling",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            sampling_case("all", 8, 32000, temperature=1.3, top_k=50, top_p=0.9, min_p=0.01),
        ),
        is_registered=False,
    ),
    Operation(
        name="topk_fused_sampling",
        package="sampling",
        small=(fused_case(7, 300), fused_case(2, 97, with_tensors=False)),
        served=tuple(
            fused_case(rows, 151936, with_tensors)
            for rows in (1, 64)
            for with_tensors in (False, True)
        ),
        compiled=(fused_case(8, 151936),),
        row_inputs=("logits", "top_k", "temperature", "top_p", "min_p", "seed", "position"),
    ),
)

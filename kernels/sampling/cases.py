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
    sampling_case(name, 3, vocabulary, **setting)
    for name, setting in SETTINGS
    for vocabulary in (1, 97, 1000)
)

SERVED_CASES = tuple(
    sampling_case(name, rows, vocabulary, **setting)
    for name, setting in SETTINGS
    for rows, vocabulary in ((1, 49152), (32, 49152), (1, 151936), (32, 151936))
)
"""For the benchmark."""

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
)

"""What a case of a kernel op is: one shape and dtype, with its inputs, tolerance and cost.

Every op folder has a `cases.py` that ends in `OPERATIONS`: its public functions with their cases.
The tests of every op (tests/kernels/test_operations.py), the compiler check
(tools/compile_kernels.py) and the benchmark (benchmarks/kernels.py) find them there, so a shape
that is measured is a shape that is checked.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quire.kernels.ragged_batch import RaggedBatch

BuildInputs = Callable[[torch.device, torch.Generator], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One shape and dtype of an op.

    `build(device, generator)` returns the keyword arguments of the op, with tensors on `device`
    and values drawn from `generator` (a generator of the CPU, so that every device gets the same
    values). `tolerance` is the greatest absolute difference from the float64 (or fp32) reference,
    to which `relative` times the reference's magnitude is added.
    `bytes_moved` and `flops` are the least that any implementation must move and compute; `dtype`
    is the one whose matmul rate bounds the FLOPs.
    """

    name: str
    dtype: torch.dtype
    build: BuildInputs
    tolerance: float
    bytes_moved: int
    flops: int
    relative: float = 0.0


@dataclass(frozen=True)
class Operation:
    """One public function of an op folder, as tests, compiler check and benchmark see it.

    `small` cases run in Triton's interpreter (few programs: each tile operation costs 0.1 ms),
    `served` ones are timed, `compiled` ones are compiled for GPUs that are not here and cover
    every kernel and launch variant. `mutates` names the inputs that the function writes.
    `row_inputs` names inputs whose first dimension is the row: each row's bits must not depend on
    the other rows, on `row_paths` (the function runs torch's on a CPU, whose matmuls are not exact
    without `prepare_linear`). `peers` are the best equivalents of torch, by label, on the same inputs.
    By convention folder `package` has `name` in `__init__`, `name_reference` in `reference` and
    `name_triton` in `kernel`.
    """

    name: str
    package: str
    small: tuple[Case, ...]
    served: tuple[Case, ...]
    compiled: tuple[Case, ...]
    mutates: tuple[str, ...] = ()
    row_inputs: tuple[str, ...] = ()
    row_paths: tuple[str, ...] = ("function", "triton")
    peers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    min_capability: int = 80
    """Least compute capability * 10 that has the op's data types (fp8: 89)."""
    is_registered: bool = True
    """Whether `torch.ops.quire` has it; host-side functions are not registered."""

    def function(self) -> Callable[..., Any]:
        return self._found("", self.name)

    def reference(self) -> Callable[..., Any]:
        return self._found(".reference", f"{self.name}_reference")

    def triton(self) -> Callable[..., Any]:
        return self._found(".kernel", f"{self.name}_triton")

    def _found(self, module: str, name: str) -> Callable[..., Any]:
        found = importlib.import_module(f"quire.kernels.{self.package}{module}")
        function: Callable[..., Any] = getattr(found, name)
        return function


def every_operation() -> Iterator[Operation]:
    """The operations of all op folders, in order of folders."""
    for path in sorted(Path(__file__).parent.glob("*/cases.py")):
        yield from importlib.import_module(f"quire.kernels.{path.parent.name}.cases").OPERATIONS


def random_ragged_batch(
    query_lengths: Sequence[int],
    cache_lengths: Sequence[int],
    page_size: int,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[RaggedBatch, int]:
    """A step of contexts with these lengths on randomly placed pages, and how many pages exist.

    Contexts must be in the order of a step: those with one token first. Page 0 belongs to no one.
    """
    kv_lengths = [new + old for new, old in zip(query_lengths, cache_lengths, strict=True)]
    page_counts = [-(-length // page_size) for length in kv_lengths]
    num_pages = sum(page_counts) + 1
    free = (torch.randperm(num_pages - 1, generator=generator) + 1).tolist()
    lookup_table = torch.zeros(len(kv_lengths), max(page_counts), dtype=torch.int32)
    for row, count in enumerate(page_counts):
        lookup_table[row, :count] = torch.tensor([free.pop() for _ in range(count)])
    positions = torch.cat(
        [torch.arange(end - new, end) for new, end in zip(query_lengths, kv_lengths, strict=True)]
    )
    context = torch.repeat_interleave(torch.arange(len(kv_lengths)), torch.tensor(query_lengths))
    pages = lookup_table[context, positions // page_size].long()
    offsets = torch.tensor([0, *query_lengths]).cumsum(0)
    decode = next((i for i, n in enumerate(query_lengths) if n != 1), len(query_lengths))
    batch = RaggedBatch(
        input_row_offsets=offsets.to(device, torch.int32),
        cache_lengths=torch.tensor(cache_lengths, dtype=torch.int32, device=device),
        lookup_table=lookup_table.to(device),
        positions=positions.to(device, torch.int32),
        slots=(pages * page_size + positions % page_size).to(device),
        query_lengths=tuple(query_lengths),
        kv_lengths=tuple(kv_lengths),
        num_decode=decode,
    )
    return batch, num_pages

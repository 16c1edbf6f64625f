"""What a case of a kernel op is: one shape and dtype, with its inputs, tolerance and cost.

Every op folder has a `cases.py` with a tuple of `Case`; the op's tests and its benchmark read
the same tuple, so a shape that is measured is a shape that is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quire.kernels.ragged_batch import RaggedBatch

BuildInputs = Callable[[torch.device, torch.Generator], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One shape and dtype of an op.

    `build(device, generator)` returns the keyword arguments of the op, with tensors on `device`
    and values drawn from `generator` (a generator of the CPU, so that every device gets the same
    values). `tolerance` is the greatest absolute difference from the float64 (or fp32) reference.
    `bytes_moved` and `flops` are the least that any implementation must move and compute.
    """

    name: str
    dtype: torch.dtype
    build: BuildInputs
    tolerance: float
    bytes_moved: int
    flops: int


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

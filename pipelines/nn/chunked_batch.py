"""What layers of chunked attention see of a batch (Llama 4).

Tokens there attend to keys of their own chunk only: positions 0..c-1, c..2c-1, and so on. That is
plain causal attention if every chunk that a step touches is a context of its own, with the pages
that begin where the chunk does. Rope and the cache keep the true positions and slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from quire.kernels.flash_attention_ragged import plan_decode
from quire.kernels.ragged_batch import RaggedBatch


@dataclass(frozen=True, slots=True)
class _Part:
    """The tokens `start` to `end` of a context that lie in the chunk beginning at `first`."""

    context: int
    first: int
    start: int
    end: int


def chunked_batch(batch: RaggedBatch, chunk_size: int, page_size: int) -> RaggedBatch:
    """`batch` with a context for each chunk that its contexts' tokens lie in.

    `chunk_size` is a multiple of `page_size`, as the memory plan sees to.
    """
    if all(length <= chunk_size for length in batch.kv_lengths):
        return batch
    parts = [
        _Part(context, first, max(length - count, first), min(length, first + chunk_size))
        for context, (count, length) in enumerate(
            zip(batch.query_lengths, batch.kv_lengths, strict=True)
        )
        for first in range((length - count) // chunk_size * chunk_size, length, chunk_size)
    ]
    counts = [part.end - part.start for part in parts]
    device = batch.cache_lengths.device

    def on_device(numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    return replace(
        batch,
        input_row_offsets=on_device(list(accumulate(counts, initial=0))),
        cache_lengths=on_device([part.start - part.first for part in parts]),
        lookup_table=_pages(batch.lookup_table, parts, page_size),
        query_lengths=tuple(counts),
        kv_lengths=tuple(part.end - part.first for part in parts),
    )


def _pages(lookup_table: torch.Tensor, parts: Sequence[_Part], page_size: int) -> torch.Tensor:
    """The pages of each part, int32 [parts, P]; those behind its last are any page."""
    device, last = lookup_table.device, lookup_table.shape[1] - 1
    widest = max(-(-(part.end - part.first) // page_size) for part in parts)
    rows = torch.tensor([part.context for part in parts], device=device)
    firsts = torch.tensor([part.first // page_size for part in parts], device=device)
    columns = firsts[:, None] + torch.arange(widest, device=device)
    return lookup_table[rows[:, None], columns.clamp(max=last)].contiguous()


class ChunkedBatches:
    """The batches of one step as chunked layers see them, each made once."""

    def __init__(self, batches: Sequence[RaggedBatch]) -> None:
        self._batches = batches
        self._made: dict[tuple[int, int], tuple[RaggedBatch, torch.Tensor | None]] = {}

    def find(
        self, group: int, chunk_size: int, page_size: int
    ) -> tuple[RaggedBatch, torch.Tensor | None]:
        """That of a page group, and its decode plan where the device reads one."""
        key = (group, chunk_size)
        if key not in self._made:
            batch = chunked_batch(self._batches[group], chunk_size, page_size)
            reads_plan = batch.cache_lengths.is_cuda and batch.num_decode > 0
            self._made[key] = batch, plan_decode(batch) if reads_plan else None
        return self._made[key]

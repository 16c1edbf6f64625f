"""From a step plan to the tensors of a step; the only place that knows their layout."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.core.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the model takes: `tokens` int32 [T]; `logit_rows` int64 [S], the last token of each
    row that samples, in plan order. The batches of the page groups differ in `lookup_table` and
    `slots` alone."""

    tokens: torch.Tensor
    batches: tuple[RaggedBatch, ...]
    logit_rows: torch.Tensor


def build_inputs(plan: StepPlan, page_size: int, device: torch.device) -> StepInputs:
    """Lay the rows of `plan` end to end.

    Raises:
        ValueError: a row has fewer pages than its tokens need, or ends past its history.
    """
    starts = np.array([row.start for row in plan.rows], dtype=np.int32)
    counts = np.array([row.count for row in plan.rows], dtype=np.int32)
    ends = starts + counts
    offsets = np.zeros(len(plan.rows) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])

    num_pages = -(-ends // page_size)
    tokens = np.empty(offsets[-1], dtype=np.int32)
    shape = (len(plan.rows[0].tables), len(plan.rows), int(num_pages.max()))
    lookup_tables = np.zeros(shape, dtype=np.int32)
    # Plain integers: reading them out of an array costs more than all else in this loop.
    bounds = zip(ends.tolist(), num_pages.tolist(), offsets.tolist(), strict=False)
    for index, (row, (end, needed, offset)) in enumerate(zip(plan.rows, bounds, strict=True)):
        history = row.context.tokens.all
        given = min(map(len, row.tables)) if len(row.tables) > 1 else len(row.tables[0])
        if given < needed or len(history) < end:
            raise ValueError(
                f"context {row.context.request_id}: tokens up to {end} need {needed} "
                f"pages, {given} given, and a history of {len(history)}"
            )
        tokens[offset : offset + row.count] = history[row.start : end]
        for group, table in enumerate(row.tables):
            lookup_tables[group, index, :needed] = table[:needed]

    row_of_token = np.repeat(np.arange(len(plan.rows)), counts)
    positions = np.arange(offsets[-1], dtype=np.int32) - (offsets[:-1] - starts)[row_of_token]
    columns, places = positions // page_size, positions % page_size
    slots = [
        table[row_of_token, columns].astype(np.int64) * page_size + places
        for table in lookup_tables
    ]
    samples = np.array([row.samples for row in plan.rows])

    def on_device(array: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        # On a CPU nothing is to be moved, and to ask takes as long as the arithmetic above.
        return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)

    batch = RaggedBatch(
        input_row_offsets=on_device(offsets),
        cache_lengths=on_device(starts),
        lookup_table=on_device(lookup_tables[0]),
        positions=on_device(positions),
        slots=on_device(slots[0]),
        query_lengths=tuple(counts.tolist()),
        kv_lengths=tuple(ends.tolist()),
        num_decode=int((counts == 1).cumprod().sum()),
    )
    others = (
        replace(batch, lookup_table=on_device(table), slots=on_device(own))
        for table, own in zip(lookup_tables[1:], slots[1:], strict=True)
    )
    logit_rows = (offsets[1:][samples] - 1).astype(np.int64)
    return StepInputs(on_device(tokens), (batch, *others), on_device(logit_rows))

"""From hidden states to one vector per text, the same bits however the text is cut into steps.

States are added up in float64, one token after the other. So neither the cuts nor the step decide
the order of additions, and the rounding to float32 comes once, at the end.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quire.pipelines.core.context import Pooling
from quire.pipelines.core.plan import PlanRow, StepPlan


@dataclass(frozen=True, slots=True)
class PoolSegment:
    """The `count` rows of a step from `offset` on whose states `row` needs; there may be none."""

    row: PlanRow
    offset: int
    count: int


def pool_segments(plan: StepPlan) -> list[PoolSegment]:
    """One for each row of `plan` whose context has a pooling."""
    segments = []
    offset = 0
    for row in plan.rows:
        first, count = 0, row.count
        if row.context.pooling == "cls":
            count = int(row.start == 0)
        elif row.context.pooling == "last":
            first, count = row.count - 1, int(_ends(row))
        if row.context.pooling is not None:
            segments.append(PoolSegment(row, offset + first, count))
        offset += row.count
    return segments


def pooled_rows(segments: list[PoolSegment]) -> torch.Tensor:
    """int64 [P], the rows of all segments one after the other."""
    ranges = [np.arange(s.offset, s.offset + s.count, dtype=np.int64) for s in segments]
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *ranges]))


def pooled_vectors(segments: list[PoolSegment], states_PC: NDArray[np.float32]) -> dict[int, bytes]:
    """Add the states of `pooled_rows` to what their contexts have; as `StepResult.embeddings`."""
    found = {}
    done = 0
    for segment in segments:
        row, context = segment.row, segment.row.context
        states = states_PC[done : done + segment.count]
        done += segment.count
        # After a preemption the text begins again.
        so_far = None if row.start == 0 else context.pooled
        context.pooled = _added(so_far, states)
        if _ends(row) and context.pooling is not None:
            found[context.request_id] = _vector(
                context.pooled, context.pooling, context.tokens.prompt_length
            )
    return found


def pool_text(states_TC: NDArray[np.float32], pooling: Pooling) -> bytes:
    """As one of `StepResult.embeddings`, of a text whose states are all there."""
    parts = {"cls": states_TC[:1], "mean": states_TC, "last": states_TC[-1:]}
    return _vector(_added(None, parts[pooling]), pooling, len(states_TC))


def _ends(row: PlanRow) -> bool:
    return row.start + row.count == row.context.tokens.prompt_length


def _added(
    total: NDArray[np.float64] | None, states_PC: NDArray[np.float32]
) -> NDArray[np.float64]:
    if total is None:
        total = np.zeros(states_PC.shape[1])
    for state in states_PC:
        total += state
    return total


def _vector(total_C: NDArray[np.float64], pooling: Pooling, num_tokens: int) -> bytes:
    vector = total_C / num_tokens if pooling == "mean" else total_C
    return vector.astype("<f4").tobytes() if np.isfinite(vector).all() else b""

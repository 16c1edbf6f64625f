"""Log-probabilities of prompts: which hidden states a step needs for them, and what they say."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from quire.pipelines.core.logprobs import LogProbabilities, PromptLogProbabilities
from quire.pipelines.core.plan import PlanRow, StepPlan
from quire.pipelines.worker.sampler import log_probabilities

ROWS_AT_ONCE = 64
"""Bounds the logits that exist at a time: 64 rows of 152k are 39 MB."""


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """Prompt tokens `first + 1 .. first + count` of a context, told by the `count` rows of the step
    from `offset` on."""

    row: PlanRow
    offset: int
    first: int
    count: int


def prompt_segments(plan: StepPlan) -> list[PromptSegment]:
    """The rows of `plan` that run prompt tokens of a context that asked."""
    segments = []
    offset = 0
    for row in plan.rows:
        if row.context.params.prompt_logprobs is not None:
            last = min(row.start + row.count, row.context.tokens.prompt_length - 1)
            if last > row.start:
                segments.append(PromptSegment(row, offset, row.start, last - row.start))
        offset += row.count
    return segments


def segment_rows(segments: list[PromptSegment]) -> torch.Tensor:
    """int64 [P], the rows of all segments one after the other."""
    ranges = [np.arange(s.offset, s.offset + s.count, dtype=np.int64) for s in segments]
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *ranges]))


def prompt_log_probabilities(
    segments: list[PromptSegment],
    hidden_PC: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
) -> list[PromptLogProbabilities]:
    """What the hidden states of `segment_rows` say of the tokens that follow them.

    `head` makes fp32 logits [rows, V] of hidden states [rows, C].
    """
    result = []
    done = 0
    for segment in segments:
        context = segment.row.context
        targets = context.tokens.prompt[segment.first + 1 : segment.first + 1 + segment.count]
        entries: list[LogProbabilities] = []
        for start in range(0, segment.count, ROWS_AT_ONCE):
            rows = slice(start, min(segment.count, start + ROWS_AT_ONCE))
            hidden = hidden_PC[done + rows.start : done + rows.stop]
            entries += _entries(head(hidden), targets[rows], context.params.prompt_logprobs or 0)
        result.append(PromptLogProbabilities(context.request_id, segment.first + 1, entries))
        done += segment.count
    return result


def _entries(
    logits_RV: torch.Tensor, targets: np.ndarray[tuple[int], np.dtype[np.int32]], count: int
) -> list[LogProbabilities]:
    tokens = torch.from_numpy(targets.astype(np.int64)).to(logits_RV.device)
    counts = [min(count, logits_RV.shape[1])] * len(targets)
    own = logits_RV.gather(1, tokens[:, None])
    ranks = ((logits_RV > own).sum(-1) + 1).tolist()
    found = log_probabilities(logits_RV, tokens, counts)
    return [
        LogProbabilities(entry.token_log_probability, entry.top_log_probabilities, rank)
        for entry, rank in zip(found, ranks, strict=True)
    ]

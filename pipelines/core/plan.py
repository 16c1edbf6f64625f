"""What the scheduler asks of the runner, and what the runner answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities, PromptLogProbabilities

NO_TOKEN_LEFT = "the request's constraints leave no token to sample"
GRAMMAR_TOO_SLOW = "the request's grammar takes too long to follow; make it less ambiguous"
CONSTRAINT_ERRORS = (NO_TOKEN_LEFT, GRAMMAR_TOO_SLOW)
"""Errors of rows that are their requests' own fault."""
GRAMMAR_REFUSES = "the request's grammar refuses a token that it allowed"
INVALID_LOGITS = "the model produced invalid logits (NaN or infinity)"
INVALID_STATES = "the model's states are not finite"
CORRUPTION_ERRORS = (INVALID_LOGITS, INVALID_STATES)
"""Errors of rows whose numbers the model spoiled."""


# A struct, since one is made per row and step: a frozen dataclass takes nine times as long.
class PlanRow(msgspec.Struct, frozen=True, eq=False):
    """One context's part of a step: run `tokens[start : start + count]` of its history.

    `tables` has for each page group the context's page ids in order, covering at least
    `start + count` tokens, page 0 where the group's window has passed; references to the
    scheduler's own lists, not to be kept after the step. `samples` is true when the row reaches the
    end of the history, so that its last position's logits give a new token; never where the
    context has a `pooling`.
    """

    context: TextContext
    start: int
    count: int
    tables: list[list[int]]
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One ragged batch: decode rows first (count 1), then prefill chunks."""

    rows: list[PlanRow]

    @property
    def num_tokens(self) -> int:
        return sum(row.count for row in self.rows)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Sampled tokens, aligned with the rows of the plan that sample, in plan order."""

    tokens: NDArray[np.int32]
    """[S]; -1 where the row failed."""
    logprobs: list[LogProbabilities | None] = field(default_factory=list)
    """Empty when no row asked, else [S]."""
    errors: dict[int, str] = field(default_factory=dict)
    """By index into `tokens`: rows that failed alone."""
    prompt_logprobs: list[PromptLogProbabilities] = field(default_factory=list)
    """Of the rows that ran prompt tokens of a context that asked."""
    embeddings: dict[int, bytes] = field(default_factory=dict)
    """By request id, of the contexts with `pooling` whose prompts ended: fp32 little-endian [C];
    empty where the states hold NaN or infinity."""


class ModelRunner(Protocol):
    """Runs a step on a device. Pages not in the plan are left as they are."""

    def execute(self, plan: StepPlan) -> StepResult: ...

    def scrub(self, pages: Sequence[Sequence[int]]) -> None:
        """Zero the `pages` of each group that a failed row may have filled with NaN."""

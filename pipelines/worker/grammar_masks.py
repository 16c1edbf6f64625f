"""The tokens that grammars allow in a step, found while the model runs."""

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import torch

from quire.kernels.logits_processing import apply_token_bitmask
from quire.pipelines.core.grammar import TokenMatcher
from quire.pipelines.core.plan import PlanRow


@dataclass(frozen=True)
class FilledRows:
    """`masked`: in these some token cannot follow; in those of `empty` none can."""

    masked: list[int]
    empty: list[int]


@dataclass(frozen=True)
class GrammarMasks:
    """`bitmask` is int32 [S, W] on the host, in the layout of `apply_token_bitmask`; only the rows
    that are `filled` as masked hold anything."""

    bitmask: torch.Tensor
    filled: Future[FilledRows]

    def apply(self, logits_SV: torch.Tensor) -> list[int]:
        """Set the fp32 logits of the tokens that cannot follow to -inf, once all are known; the rows
        in which no token is left."""
        filled = self.filled.result()
        if filled.masked:
            device = logits_SV.device
            rows = torch.tensor(filled.masked, dtype=torch.int32, device=device)
            apply_token_bitmask(logits_SV, self.bitmask.to(device), rows)
        return filled.empty


def begin_masks(rows: Sequence[PlanRow], thread: Executor) -> GrammarMasks | None:
    """Start on the masks of the `rows` that sample; None where none has a grammar."""
    matchers = [
        (index, row.context.matcher)
        for index, row in enumerate(rows)
        if row.context.matcher is not None and not row.context.matcher.is_too_slow
    ]
    if not matchers:
        return None
    words = -(-matchers[0][1].vocab_size // 32)
    bitmask = torch.empty((len(rows), words), dtype=torch.int32)
    return GrammarMasks(bitmask, thread.submit(_fill, matchers, bitmask))


def _fill(matchers: Sequence[tuple[int, TokenMatcher]], bitmask: torch.Tensor) -> FilledRows:
    masked = [row for row, matcher in matchers if matcher.fill(bitmask, row)]
    words = bitmask.numpy()
    return FilledRows(masked, [row for row in masked if not words[row].any()])

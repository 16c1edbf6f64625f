"""From the logits of a step to its tokens: what each context's parameters ask of the kernels."""

from collections.abc import Sequence

import numpy as np
import torch

from quire.kernels.sampling import (
    PenaltyRow,
    SamplingInputs,
    apply_penalty_rows,
    find_invalid_rows,
    sample_tokens,
    top_log_probabilities,
)
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.core.plan import INVALID_LOGITS, NO_TOKEN_LEFT, PlanRow, StepResult
from quire.pipelines.worker.constraints import constrain
from quire.pipelines.worker.grammar_masks import GrammarMasks


def sample_rows(
    logits_SV: torch.Tensor, rows: Sequence[PlanRow], masks: GrammarMasks | None
) -> StepResult:
    """One token per row of fp32 `logits_SV`, which is changed; a row with invalid logits fails.
    `masks` are those of the rows' grammars.

    Log-probabilities are of the logits as given, before penalties and bans.
    """
    contexts = [row.context for row in rows]
    wanted = [
        index for index, context in enumerate(contexts) if context.params.logprobs is not None
    ]
    raw_WV = logits_SV[wanted] if wanted else None
    invalid_S = find_invalid_rows(logits_SV)
    apply_penalty_rows(logits_SV, _penalties(contexts))
    empty = [] if masks is None else masks.apply(logits_SV)
    blocked = dict.fromkeys(empty, NO_TOKEN_LEFT) | {
        index: reason
        for index, context in enumerate(contexts)
        if (reason := constrain(logits_SV, index, context)) is not None
    }
    tokens_S = sample_tokens(logits_SV, _sampling_inputs(rows))

    invalid = invalid_S.cpu().numpy()
    logprobs: list[LogProbabilities | None] = []
    if raw_WV is not None:
        logprobs = [None] * len(rows)
        valid = [place for place, index in enumerate(wanted) if not invalid[index]]
        asking = [wanted[place] for place in valid]
        counts = [min(contexts[i].params.logprobs or 0, logits_SV.shape[1]) for i in asking]
        found = log_probabilities(raw_WV[valid], tokens_S[asking], counts)
        for index, entry in zip(asking, found, strict=True):
            logprobs[index] = entry
    errors = blocked | {int(index): INVALID_LOGITS for index in invalid.nonzero()[0]}
    tokens = tokens_S.cpu().numpy()
    tokens[list(errors)] = -1
    return StepResult(tokens, logprobs, errors)


def _penalties(contexts: Sequence[TextContext]) -> list[PenaltyRow]:
    return [
        PenaltyRow(
            row=index,
            frequency=context.params.frequency_penalty,
            presence=context.params.presence_penalty,
            repetition=context.params.repetition_penalty,
            prompt=context.tokens.prompt,
            generated=context.tokens.generated,
        )
        for index, context in enumerate(contexts)
        if context.params.has_penalties
    ]


def _sampling_inputs(rows: Sequence[PlanRow]) -> SamplingInputs:
    params = [row.context.params for row in rows]
    return SamplingInputs(
        temperature=np.array([p.temperature for p in params], dtype=np.float32),
        top_k=np.array([p.top_k for p in params], dtype=np.int32),
        top_p=np.array([p.top_p for p in params], dtype=np.float32),
        min_p=np.array([p.min_p for p in params], dtype=np.float32),
        seed=np.array([p.seed for p in params], dtype=np.int64),
        choice=np.array([row.context.choice for row in rows], dtype=np.int32),
        position=np.array([row.start + row.count for row in rows], dtype=np.int32),
    )


def log_probabilities(
    raw_RV: torch.Tensor, tokens_R: torch.Tensor, counts: Sequence[int]
) -> list[LogProbabilities]:
    """Of token `tokens_R` [R] and of the most likely ones, `counts` of them, in each row."""
    top = top_log_probabilities(raw_RV, tokens_R, counts)
    result = []
    for row, count in enumerate(counts):
        ids, values = top.token_ids[row].tolist(), top.values[row].tolist()
        likely = dict(zip(ids[:count], values[:count], strict=True))
        result.append(LogProbabilities(float(top.sampled[row]), likely))
    return result

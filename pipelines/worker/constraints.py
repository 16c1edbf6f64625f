"""Which tokens a context's parameters forbid or favour, as changes of its row of logits."""

import numpy as np
import torch

from quire.kernels.sampling import mask_tokens
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import GRAMMAR_TOO_SLOW, NO_TOKEN_LEFT


def constrain(logits_SV: torch.Tensor, row: int, context: TextContext) -> str | None:
    """Change fp32 `logits_SV[row]`, to which the grammar's mask was applied; the reason if these
    parameters leave no token to sample from it."""
    params, logits_V = context.params, logits_SV[row]
    if context.matcher is not None and context.matcher.is_too_slow:
        return GRAMMAR_TOO_SLOW
    forced = _end_of_thinking(context)
    if forced is not None and forced < len(logits_V) and logits_V[forced] > float("-inf"):
        # Nothing else may forbid it: the budget would be spent over and over.
        logits_V.fill_(float("-inf"))
        logits_V[forced] = 0.0
        return None
    if params.logit_bias:
        tokens = _index(list(params.logit_bias), logits_V)
        logits_V[tokens] += torch.tensor(list(params.logit_bias.values())).to(logits_V)
    if params.allowed_token_ids:
        tokens = _index(list(params.allowed_token_ids), logits_V)
        kept = logits_V[tokens]
        logits_V.fill_(float("-inf"))
        logits_V[tokens] = kept
    if banned := _banned_tokens(context, logits_SV.shape[1]):
        mask_tokens(logits_SV, row, banned)
    is_constrained = bool(params.allowed_token_ids or banned)
    # Not isfinite().any(), which takes thirty times as long; NaN and +inf fail the row anyway.
    return NO_TOKEN_LEFT if is_constrained and logits_V.amax() == -torch.inf else None


def _end_of_thinking(context: TextContext) -> int | None:
    """The token that ends the reasoning, where its budget is spent. A function of the history, so a
    resumed context goes on as it was."""
    budget = context.params.thinking
    if budget is None:
        return None
    generated, start = context.tokens.generated, 0
    if not budget.is_open:
        text = np.flatnonzero(np.isin(generated, budget.spaces, invert=True))
        if not text.size or generated[text[0]] != budget.opening:
            return None
        start = int(text[0]) + 1
    if len(generated) - start < budget.tokens or (generated[start:] == budget.closing).any():
        return None
    return budget.closing


def _index(tokens: list[int], logits_V: torch.Tensor) -> torch.Tensor:
    return torch.tensor(tokens, device=logits_V.device)


def _banned_tokens(context: TextContext, vocab_size: int) -> list[int]:
    """Ids beyond the vocabulary cannot come."""
    banned = _ends(context) + _ends_of_bad_words(context)
    return [token for token in banned if 0 <= token < vocab_size]


def _ends(context: TextContext) -> list[int]:
    """The tokens that would end the context too early."""
    if not context.is_below_min_new_tokens:
        return []
    ends = context.params.stop_token_ids
    if not context.params.ignore_eos:
        ends += context.eos_token_ids
    return list(ends)


def _ends_of_bad_words(context: TextContext) -> list[int]:
    words = context.params.bad_words
    longest = max(map(len, words), default=1) - 1
    tail = tuple(context.tokens.generated[-longest:].tolist()) if longest else ()
    return [
        word[-1]
        for word in words
        if len(word) == 1 or (len(word) <= len(tail) + 1 and tail[1 - len(word) :] == word[:-1])
    ]

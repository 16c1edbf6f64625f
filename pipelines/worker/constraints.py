"""Which tokens a context's parameters forbid or favour, as changes of its row of logits."""

import torch

from quire.kernels.sampling import mask_tokens
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import GRAMMAR_TOO_SLOW, NO_TOKEN_LEFT


def constrain(logits_SV: torch.Tensor, row: int, context: TextContext) -> str | None:
    """Change fp32 `logits_SV[row]`; the reason if no token can be sampled from it."""
    params, logits_V = context.params, logits_SV[row]
    if params.logit_bias:
        tokens = _index(list(params.logit_bias), logits_V)
        logits_V[tokens] += torch.tensor(list(params.logit_bias.values())).to(logits_V)
    if params.allowed_token_ids:
        tokens = _index(list(params.allowed_token_ids), logits_V)
        kept = logits_V[tokens]
        logits_V.fill_(float("-inf"))
        logits_V[tokens] = kept
    if context.matcher is not None:
        if context.matcher.is_too_slow:
            return GRAMMAR_TOO_SLOW
        context.matcher.mask(logits_V)
    if banned := _banned_tokens(context, logits_SV.shape[1]):
        mask_tokens(logits_SV, row, banned)
    is_constrained = bool(params.allowed_token_ids or banned or context.matcher)
    return NO_TOKEN_LEFT if is_constrained and not logits_V.isfinite().any() else None


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

"""Which tokens a context's parameters forbid or favour, as changes of its row of logits."""

import numpy as np
import torch

from quire.kernels.sampling import mask_tokens
from quire.pipelines.core.context import TextContext

NO_TOKEN_LEFT = "the request's constraints leave no token to sample"


def constrain(logits_SV: torch.Tensor, row: int, context: TextContext) -> bool:
    """Change fp32 `logits_SV[row]`; False when no token is left."""
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
        context.matcher.mask(logits_V)
    if banned := _banned_tokens(context, logits_SV.shape[1]):
        mask_tokens(logits_SV, row, banned)
    is_constrained = bool(params.allowed_token_ids or banned or context.matcher)
    return not is_constrained or bool(logits_V.isfinite().any())


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
    generated = context.tokens.generated
    found = []
    for word in context.params.bad_words:
        before = np.array(word[:-1], dtype=np.int32)
        tail = generated[len(generated) - len(before) :]
        if len(before) <= len(generated) and np.array_equal(tail, before):
            found.append(word[-1])
    return found

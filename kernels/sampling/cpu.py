"""Sampling on a CPU: sorts only rows that filter, noise only for tokens that can still win."""

import numpy as np
import torch
from numpy.typing import NDArray

from quire.kernels.sampling import SamplingInputs
from quire.kernels.sampling.noise import NOISE_RANGE, gumbel, row_keys, token_words
from quire.kernels.sampling.reference import cumulative_mass, filter_limit, min_p_limit

FIRST_SORTED = 512
"""Most likely tokens tried first for top_p, before the whole vocabulary is sorted."""
MAX_GROUP_ELEMENTS = 2**22
"""Logits handled at a time, so that flat rows of a large batch do not fill the memory."""


def sample_tokens_cpu(logits_RV: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """As `sample_tokens`."""
    tokens = np.empty(len(logits_RV), dtype=np.int32)
    greedy = np.flatnonzero(inputs.temperature == 0.0)
    if greedy.size:
        tokens[greedy] = logits_RV[torch.from_numpy(greedy)].argmax(-1).numpy()
    drawn = np.flatnonzero(inputs.temperature)
    group = max(1, MAX_GROUP_ELEMENTS // logits_RV.shape[1])
    for start in range(0, len(drawn), group):
        rows = drawn[start : start + group]
        tokens[rows] = _draw(logits_RV[torch.from_numpy(rows)], inputs.take(rows))
    return torch.from_numpy(tokens)


def _draw(logits_RV: torch.Tensor, inputs: SamplingInputs) -> NDArray[np.int32]:
    """The tokens of rows that are not greedy."""
    temperature = torch.from_numpy(inputs.temperature)[:, None]
    distance_RV = logits_RV.amax(-1, keepdim=True).sub(logits_RV).div_(temperature)
    filters = zip(inputs.top_k.tolist(), inputs.top_p.tolist(), inputs.min_p.tolist(), strict=True)
    limit_R = torch.tensor(
        [_limit(distance_V, *given) for distance_V, given in zip(distance_RV, filters, strict=True)]
    )
    row, token = (distance_RV <= limit_R[:, None]).nonzero(as_tuple=True)
    key_0, key_1 = row_keys(inputs.seed, inputs.choice, inputs.position)
    words = token_words(token.int(), torch.from_numpy(key_0)[row], torch.from_numpy(key_1)[row])
    score = gumbel(words) - distance_RV[row, token]

    tokens = np.zeros(len(logits_RV), dtype=np.int32)
    rows, firsts = np.unique(row.numpy(), return_index=True)
    if rows.size:  # a row of NaN keeps nothing
        best = torch.from_numpy(np.maximum.reduceat(score.numpy(), firsts))
        best_R = torch.zeros(len(logits_RV))
        best_R[torch.from_numpy(rows)] = best
        winners = (score == best_R[row]).nonzero()[:, 0]
        won, first_of = np.unique(row[winners].numpy(), return_index=True)
        tokens[won] = token[winners].numpy()[first_of]
    return tokens


def _limit(distance_V: torch.Tensor, top_k: int, top_p: float, min_p: float) -> float:
    """`filter_limit`, and no more than a token that can still win, without a full sort."""
    limit = min(NOISE_RANGE, min_p_limit(min_p))
    if 0 < top_k < len(distance_V):
        limit_k = distance_V.topk(top_k, largest=False).values[-1]
        limit = min(limit, float(limit_k))
        if top_p < 1.0:
            kept_V = distance_V[distance_V <= limit_k]
            limit = min(limit, filter_limit(kept_V, -1, top_p, 0.0))
    elif top_p < 1.0:
        limit = min(limit, _top_p_limit(distance_V, top_p))
    return limit


def _top_p_limit(distance_V: torch.Tensor, top_p: float) -> float:
    wanted = top_p * distance_V.neg().exp_().sum(dtype=torch.float64)
    if len(distance_V) > FIRST_SORTED:
        ascending = distance_V.topk(FIRST_SORTED, largest=False).values
        enough = (cumulative_mass(ascending) >= wanted).nonzero()
        if len(enough):
            return float(ascending[enough[0, 0]])
    return filter_limit(distance_V, -1, top_p, 0.0)

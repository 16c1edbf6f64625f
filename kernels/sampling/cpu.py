"""Sampling on a CPU: the compiled kernel where it was installed, else torch's.

Torch's way sorts only rows that filter, and makes noise only for tokens that can still win.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quire.kernels.native import library
from quire.kernels.sampling.cpu_native import sample_tokens_native
from quire.kernels.sampling.inputs import SamplingInputs, row_parameters
from quire.kernels.sampling.noise import NOISE_RANGE, gumbel, row_keys, token_words
from quire.kernels.sampling.reference import cumulative_mass, filter_limit, min_p_limit

FIRST_SORTED = 512
"""Most likely tokens tried first for top_p, before the whole vocabulary is sorted."""
MAX_GROUP_ELEMENTS = 2**19
"""Logits handled at a time, so that the passes over them stay in the cache."""
DENSE_SHARE = 8
"""From one kept token in this many on, the noise of all costs less than picking the kept."""


def sample_tokens_cpu(logits_RV: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """As `sample_tokens`."""
    native = library()
    if native is None or not logits_RV.is_cpu:
        return sample_tokens_torch(logits_RV, inputs)
    tokens = sample_tokens_native(native, logits_RV, inputs)
    # Rows whose token rounding decides: as torch rounds, so that the ways never differ.
    left = np.flatnonzero(tokens.numpy() < 0)
    if left.size:
        tokens.numpy()[left] = sample_tokens_torch(
            logits_RV[torch.from_numpy(left)], inputs.take(left)
        )
    return tokens


def sample_tokens_torch(logits_RV: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """As `sample_tokens`, by torch's operations."""
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


def topk_fused_sampling_cpu(
    logits: torch.Tensor, top_k: torch.Tensor | int, **options: Any
) -> torch.Tensor:
    """As `topk_fused_sampling`."""
    return sample_tokens_cpu(logits, row_parameters(logits, top_k, **options).to_host())[:, None]


def _draw(logits_RV: torch.Tensor, inputs: SamplingInputs) -> NDArray[np.int32]:
    """The tokens of rows that are not greedy."""
    temperature = torch.from_numpy(inputs.temperature)[:, None]
    distance_RV = logits_RV.amax(-1, keepdim=True).sub(logits_RV).div_(temperature)
    filters = zip(inputs.top_k.tolist(), inputs.top_p.tolist(), inputs.min_p.tolist(), strict=True)
    limit_R = torch.tensor(
        [_limit(distance_V, *given) for distance_V, given in zip(distance_RV, filters, strict=True)]
    )
    is_kept = distance_RV <= limit_R[:, None]
    keys = row_keys(inputs.seed, inputs.choice, inputs.position)
    key_0, key_1 = torch.from_numpy(keys[0]), torch.from_numpy(keys[1])
    if DENSE_SHARE * int(is_kept.count_nonzero()) > is_kept.numel():
        every = torch.arange(logits_RV.shape[1], dtype=torch.int32)
        words = token_words(every, key_0[:, None], key_1[:, None])
        score_RV = gumbel(words).sub_(distance_RV).masked_fill_(~is_kept, -torch.inf)
        return score_RV.argmax(-1).to(torch.int32).numpy()
    row, token = is_kept.nonzero(as_tuple=True)
    score = gumbel(token_words(token.int(), key_0[row], key_1[row])) - distance_RV[row, token]
    return _first_best(row.numpy(), token.numpy(), score.numpy(), len(logits_RV))


def _first_best(
    row: NDArray[np.int64], token: NDArray[np.int64], score: NDArray[np.float32], num_rows: int
) -> NDArray[np.int32]:
    """Per row the first of the tokens with its greatest score; rows ascend; 0 for absent rows."""
    tokens = np.zeros(num_rows, dtype=np.int32)
    rows, starts = np.unique(row, return_index=True)
    if rows.size:  # a row of NaN keeps nothing
        best = np.repeat(np.maximum.reduceat(score, starts), np.diff(starts, append=row.size))
        winners = np.flatnonzero(score == best)
        _, first_of = np.unique(row[winners], return_index=True)
        tokens[rows] = token[winners[first_of]]
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

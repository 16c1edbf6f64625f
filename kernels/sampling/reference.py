"""Sampling in plain torch, row by row, everything sorted: the definition of correct."""

import math
from typing import Any

import torch

from quire.kernels.sampling.inputs import SamplingInputs, row_parameters
from quire.kernels.sampling.noise import gumbel, row_keys, token_words


def sample_tokens_reference(logits_RV: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """As `sample_tokens`."""
    keys_0, keys_1 = row_keys(inputs.seed, inputs.choice, inputs.position)
    tokens = torch.empty(len(logits_RV), dtype=torch.int32)
    for row, logits_V in enumerate(logits_RV.cpu()):
        if inputs.temperature[row] == 0.0:
            tokens[row] = logits_V.argmax()
            continue
        distance_V = (logits_V.max() - logits_V) / torch.tensor(inputs.temperature[row])
        limit = filter_limit(
            distance_V, int(inputs.top_k[row]), float(inputs.top_p[row]), float(inputs.min_p[row])
        )
        words_V = token_words(
            torch.arange(len(logits_V), dtype=torch.int32),
            torch.tensor(keys_0[row]),
            torch.tensor(keys_1[row]),
        )
        score_V = torch.where(distance_V <= limit, gumbel(words_V) - distance_V, -math.inf)
        tokens[row] = score_V.argmax()
    return tokens.to(logits_RV.device)


def topk_fused_sampling_reference(
    logits: torch.Tensor, top_k: torch.Tensor | int, **options: Any
) -> torch.Tensor:
    """As `topk_fused_sampling`."""
    inputs = row_parameters(logits, top_k, **options).to_host()
    return sample_tokens_reference(logits, inputs)[:, None]


def filter_limit(distance_V: torch.Tensor, top_k: int, top_p: float, min_p: float) -> float:
    """The greatest float32 distance that survives top_k, top_p and min_p of one row."""
    limit = math.inf
    ascending, _ = distance_V.sort()
    if 0 < top_k < len(ascending):
        limit = float(ascending[top_k - 1])
        ascending = ascending[ascending <= limit]
    if top_p < 1.0:
        mass = cumulative_mass(ascending)
        reached = (mass >= top_p * mass[-1:]).nonzero()
        if len(reached):  # a row of NaN reaches nothing
            limit = float(ascending[reached[0, 0]])
    return min(limit, min_p_limit(min_p))


def cumulative_mass(ascending: torch.Tensor) -> torch.Tensor:
    """Running sum of exp(-distance), float64."""
    return ascending.neg().exp_().double().cumsum(0)


def min_p_limit(min_p: float) -> float:
    """The distance at which a probability is min_p times the greatest, a float32 value."""
    return float(torch.tensor(min_p, dtype=torch.float64).log().neg().float())

"""Rejection sampling in plain torch, float64: the definition of correct, and the CPU path."""

from typing import Any

import torch

from quire.kernels.sampling.inputs import SamplingInputs, row_parameters
from quire.kernels.sampling.noise import (
    ACCEPTANCE_STREAM,
    RESIDUAL_STREAM,
    gumbel,
    row_keys,
    token_words,
    uniform,
)


def rejection_sampler_reference(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rejection_sampler`."""
    first, recovered, bonus = rejection_sampler_with_residuals_reference(
        draft_tokens, draft_logits, target_logits, **options
    )
    following = torch.cat((recovered, bonus[:, None]), 1)
    return first, following.gather(1, first[:, None].long())[:, 0]


def rejection_sampler_with_residuals_reference(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `rejection_sampler_with_residuals`."""
    inputs = row_parameters(target_logits, 0, **options).to_host()
    device, steps = target_logits.device, draft_tokens.shape[1]
    draft_tokens, target_logits = draft_tokens.cpu(), target_logits.cpu()
    is_accepted, recovered = torch.zeros_like(draft_tokens), torch.zeros_like(draft_tokens)
    for step in range(steps):
        draft = None if draft_logits is None else draft_logits[:, step].cpu()
        is_accepted[:, step], recovered[:, step] = _step(
            draft_tokens[:, step], draft, target_logits[:, step], inputs, step
        )
    first = is_accepted.cumprod(1).sum(1).to(torch.int32)
    bonus = _bonus(target_logits[:, steps], inputs, steps)
    return first.to(device), recovered.to(device), bonus.to(device)


def _step(
    token_B: torch.Tensor,
    draft_BV: torch.Tensor | None,
    target_BV: torch.Tensor,
    inputs: SamplingInputs,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each row's drafted token is accepted, and what comes if not."""
    is_greedy, temperature = _temperature(inputs)
    best_B = target_BV.argmax(-1)
    is_token = (token_B >= 0) & (token_B < target_BV.shape[1])
    index_B1 = token_B.long()[:, None].where(is_token[:, None], 0)
    p_BV = (target_BV.double() / temperature).softmax(-1)
    if draft_BV is None:
        q_BV = torch.zeros_like(p_BV).scatter_(1, index_B1, is_token.double()[:, None])
    else:
        q_BV = (draft_BV.double() / temperature).softmax(-1)
    keys = _keys(inputs, ACCEPTANCE_STREAM, step)
    drawn_B1 = uniform(token_words(index_B1.int(), *keys)).double()
    is_within = (drawn_B1 * q_BV.gather(1, index_B1) < p_BV.gather(1, index_B1))[:, 0]
    is_accepted = is_token & torch.where(is_greedy, token_B == best_B, is_within)

    residual_BV = (p_BV - q_BV).clamp_(min=0.0)
    score_BV = residual_BV.log() + _gumbel(inputs, RESIDUAL_STREAM, step, target_BV.shape[1])
    is_none = is_greedy | (residual_BV.amax(-1) <= 0.0)
    return is_accepted, torch.where(is_none, best_B, score_BV.argmax(-1))


def _bonus(target_BV: torch.Tensor, inputs: SamplingInputs, step: int) -> torch.Tensor:
    is_greedy, temperature = _temperature(inputs)
    distance_BV = (target_BV.amax(-1, keepdim=True) - target_BV) / temperature
    score_BV = _gumbel(inputs, 0, step, target_BV.shape[1]) - distance_BV
    return torch.where(is_greedy, target_BV.argmax(-1), score_BV.argmax(-1)).to(torch.int32)


def _temperature(inputs: SamplingInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows are greedy [B], and the temperature [B, 1], 1 for those."""
    temperature = torch.from_numpy(inputs.temperature)
    is_greedy = temperature == 0.0
    return is_greedy, temperature.masked_fill(is_greedy, 1.0)[:, None]


def _keys(inputs: SamplingInputs, stream: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys = row_keys(inputs.seed, inputs.choice ^ stream, inputs.position + step)
    return torch.from_numpy(keys[0])[:, None], torch.from_numpy(keys[1])[:, None]


def _gumbel(inputs: SamplingInputs, stream: int, step: int, vocabulary: int) -> torch.Tensor:
    every = torch.arange(vocabulary, dtype=torch.int32)
    return gumbel(token_words(every, *_keys(inputs, stream, step)))

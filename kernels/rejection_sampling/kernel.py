"""Triton: rejection sampling. One program judges a drafted token, one draws a token; no sort."""

from typing import Any

import torch
import triton
import triton.language as tl

from quire.kernels.sampling import noise
from quire.kernels.sampling.inputs import row_parameters
from quire.kernels.sampling_noise.kernel import gumbel_noise, load_key, uniform_noise

BLOCK = 4096
NO_TOKEN = tl.constexpr(2**31 - 1)
ACCEPTANCE_STREAM = tl.constexpr(noise.ACCEPTANCE_STREAM)
RESIDUAL_STREAM = tl.constexpr(noise.RESIDUAL_STREAM)


@triton.jit
def _softmax_sums(logits, temperature, vocabulary, BLOCK: tl.constexpr):
    """The greatest logit, the first token that has it, and the sum of exp((logit - it) / T)."""
    best_block = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = tl.load(logits + token, mask=token < vocabulary, other=float("-inf"))
        best_block = tl.maximum(best_block, value)
    best = tl.max(best_block, 0)
    first_block = tl.full((BLOCK,), NO_TOKEN, tl.int32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = tl.load(logits + token, mask=token < vocabulary, other=float("-inf"))
        first_block = tl.minimum(first_block, tl.where(value == best, token, NO_TOKEN))
        total += tl.exp((value - best) / temperature)
    first = tl.min(first_block, 0)
    return best, tl.where(first == NO_TOKEN, 0, first), tl.sum(total, 0)


@triton.jit
def judge_kernel(
    draft_tokens,
    draft_logits,
    target_logits,
    temperatures,
    seeds,
    choices,
    positions,
    sums,
    firsts,
    accepted,
    steps,
    vocabulary,
    HAS_DRAFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows, steps + 1). `sums` holds greatest logit and sum of target and of draft."""
    row = tl.program_id(0).to(tl.int64)
    step = tl.program_id(1)
    place = row * (steps + 1) + step
    given = tl.load(temperatures + row)
    temperature = tl.where(given == 0.0, 1.0, given)
    target = target_logits + place * vocabulary
    best, first, total = _softmax_sums(target, temperature, vocabulary, BLOCK)
    tl.store(sums + 4 * place, best)
    tl.store(sums + 4 * place + 1, total)
    tl.store(firsts + place, first)
    is_accepted = False
    if step < steps:
        token = tl.load(draft_tokens + row * steps + step)
        is_token = (token >= 0) & (token < vocabulary)
        index = tl.where(is_token, token, 0)
        p = tl.exp((tl.load(target + index) - best) / temperature) / total
        q = tl.full((), 1.0, tl.float32)
        if HAS_DRAFT:
            draft = draft_logits + (row * steps + step) * vocabulary
            best_q, _, total_q = _softmax_sums(draft, temperature, vocabulary, BLOCK)
            tl.store(sums + 4 * place + 2, best_q)
            tl.store(sums + 4 * place + 3, total_q)
            q = tl.exp((tl.load(draft + index) - best_q) / temperature) / total_q
        key_0, key_1 = load_key(seeds, choices, positions, row, ACCEPTANCE_STREAM, step)
        drawn = tl.max(uniform_noise(index + tl.zeros_like(key_0).to(tl.int32), key_0, key_1), 0)
        is_accepted = is_token & tl.where(given == 0.0, token == first, drawn * q < p)
    tl.store(accepted + place, tl.where(is_accepted, 1, 0))


@triton.jit
def _scores(
    target,
    draft,
    drafted,
    start,
    best,
    total,
    best_q,
    total_q,
    temperature,
    vocabulary,
    key_0,
    key_1,
    is_bonus,
    HAS_DRAFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of a block of tokens: gumbel + log of what they are drawn with."""
    token = start + tl.arange(0, BLOCK)
    mask = token < vocabulary
    value = tl.load(target + token, mask=mask, other=float("-inf"))
    gumbel = gumbel_noise(token, key_0, key_1)
    score = gumbel - tl.div_rn(best - value, tl.zeros_like(value) + temperature)
    if not is_bonus:
        p = tl.exp((value - best) / temperature) / total
        if HAS_DRAFT:
            value_q = tl.load(draft + token, mask=mask, other=float("-inf"))
            residual = p - tl.exp((value_q - best_q) / temperature) / total_q
        else:
            residual = tl.where(token == drafted, 0.0, p)
        is_left = residual > 0.0
        score = tl.where(is_left, tl.log(tl.where(is_left, residual, 1.0)) + gumbel, float("-inf"))
    return tl.where(mask, score, float("-inf")), token


@triton.jit
def draw_kernel(
    draft_tokens,
    draft_logits,
    target_logits,
    temperatures,
    seeds,
    choices,
    positions,
    sums,
    firsts,
    accepted,
    rejected,
    recovered,
    following,
    steps,
    vocabulary,
    STEPS: tl.constexpr,
    EVERY_STEP: tl.constexpr,
    HAS_DRAFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows, steps + 1), or (rows, 1) for the first rejected step alone."""
    row = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, STEPS)
    is_accepted = tl.load(accepted + row * (steps + 1) + every, mask=every <= steps, other=1)
    first_rejected = tl.min(tl.where(is_accepted == 0, every, STEPS), 0)
    tl.store(rejected + row, first_rejected)
    step = tl.program_id(1) if EVERY_STEP else first_rejected
    is_bonus = step == steps
    place = row * (steps + 1) + step
    given = tl.load(temperatures + row)
    winner = tl.load(firsts + place)
    if given > 0.0:
        draft = row * steps + tl.minimum(step, steps - 1)
        stream = tl.where(is_bonus, 0, RESIDUAL_STREAM)
        key_0, key_1 = load_key(seeds, choices, positions, row, stream, step)
        best, total = tl.load(sums + 4 * place), tl.load(sums + 4 * place + 1)
        best_q, total_q = best, total
        if HAS_DRAFT:
            best_q = tl.load(sums + 4 * place + 2, mask=step < steps, other=0.0)
            total_q = tl.load(sums + 4 * place + 3, mask=step < steps, other=1.0)
        drafted = tl.load(draft_tokens + draft)
        winner_score = tl.full((), float("-inf"), tl.float32)
        for start in range(0, vocabulary, BLOCK):
            score, token = _scores(
                target_logits + place * vocabulary, draft_logits + draft * vocabulary, drafted,
                start, best, total, best_q, total_q, given, vocabulary, key_0, key_1, is_bonus,
                HAS_DRAFT, BLOCK,
            )  # fmt: skip
            block_score = tl.max(score, 0)
            block_winner = tl.min(tl.where(score == block_score, token, NO_TOKEN), 0)
            is_better = block_score > winner_score
            winner = tl.where(is_better, block_winner, winner)
            winner_score = tl.where(is_better, block_score, winner_score)
    if EVERY_STEP:
        tl.store(recovered + row * steps + step, winner, mask=step < steps)
        tl.store(following + row, winner, mask=is_bonus)
    else:
        tl.store(following + row, winner)


def _run(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    every_step: bool,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first rejected index [B]; with `every_step` the recovered tokens [B, S] and the bonus,
    else nothing in particular and the token that follows [B]."""
    rows, steps = draft_tokens.shape
    vocabulary = target_logits.shape[2]
    per_row = row_parameters(target_logits, 0, **options)
    key = (per_row.temperature, per_row.seed, per_row.choice, per_row.position)
    has_draft = draft_logits is not None
    sums = target_logits.new_empty(rows, steps + 1, 4)
    firsts, accepted = (draft_tokens.new_empty(rows, steps + 1) for _ in range(2))
    rejected = draft_tokens.new_empty(rows)
    recovered = torch.empty_like(draft_tokens) if every_step else draft_tokens
    following = torch.empty_like(rejected)
    inputs = (draft_tokens, draft_logits if has_draft else target_logits, target_logits)
    if rows:
        judge_kernel[(rows, steps + 1)](
            *inputs, *key, sums, firsts, accepted, steps, vocabulary, has_draft, BLOCK, num_warps=8
        )
        draw_kernel[(rows, steps + 1 if every_step else 1)](
            *inputs, *key, sums, firsts, accepted, rejected, recovered, following,
            steps, vocabulary, triton.next_power_of_2(steps + 1), every_step, has_draft, BLOCK,
            num_warps=8,
        )  # fmt: skip
    return rejected, recovered, following


def rejection_sampler_triton(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rejection_sampler`."""
    rejected, _, following = _run(draft_tokens, draft_logits, target_logits, False, options)
    return rejected, following


def rejection_sampler_with_residuals_triton(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `rejection_sampler_with_residuals`."""
    return _run(draft_tokens, draft_logits, target_logits, True, options)

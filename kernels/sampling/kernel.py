"""Triton: sampling without a sort. One program per row; filters by bisection on float bits.

Distances are floats >= 0, so their bits order as integers: 31 halvings find the exact boundary
of top_k and of top_p, each halving one pass over the row (in L2 from the second on).
"""

import numpy as np
import torch
import triton
import triton.language as tl

from quire.kernels.sampling import noise
from quire.kernels.sampling.inputs import SamplingInputs
from quire.kernels.sampling.noise import row_keys
from quire.kernels.sampling.reference import min_p_limit

GOLDEN = tl.constexpr(noise.GOLDEN)
MIX_1 = tl.constexpr(noise.MIX_1)
MIX_2 = tl.constexpr(noise.MIX_2)
UNIFORM_STEP = tl.constexpr(noise.UNIFORM_STEP)
LEAST_UNIFORM = tl.constexpr(noise.LEAST_UNIFORM)
INFINITY_BITS = tl.constexpr(0x7F800000)
MAX_BLOCK = 4096


@triton.jit
def _mix(words):
    words = (words ^ (words >> 16)) * tl.full((1,), MIX_1, tl.uint32)
    words = (words ^ (words >> 13)) * tl.full((1,), MIX_2, tl.uint32)
    return words ^ (words >> 16)


@triton.jit
def gumbel_noise(token, key_0, key_1):
    """As `noise.gumbel` of `noise.token_words`."""
    words = token.to(tl.uint32) * tl.full((1,), GOLDEN, tl.uint32) + key_0.to(tl.uint32)
    words = _mix(_mix(words) ^ key_1.to(tl.uint32))
    uniform = tl.maximum((words >> 8).to(tl.float32) * UNIFORM_STEP, LEAST_UNIFORM)
    return -tl.log(-tl.log(uniform))


@triton.jit
def _distances(logits, start, best, temperature, vocabulary, BLOCK: tl.constexpr):
    """(max - logit) / temperature of a block of tokens; NaN, which no limit keeps, past the end."""
    token = start + tl.arange(0, BLOCK)
    value = tl.load(logits + token, mask=token < vocabulary, other=float("nan"))
    return tl.div_rn(best - value, temperature)


@triton.jit
def _kept_sum(
    logits, best, temperature, vocabulary, limit, BY_MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """Over the tokens within `limit`: the sum of exp(-distance), or their number."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, vocabulary, BLOCK):
        distance = _distances(logits, start, best, temperature, vocabulary, BLOCK)
        weight = tl.exp(-distance) if BY_MASS else tl.full((BLOCK,), 1.0, tl.float32)
        total += tl.where(distance <= limit, weight, 0.0)
    return tl.sum(total, 0)


@triton.jit
def _least_limit(
    logits, best, temperature, vocabulary, wanted, BY_MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """The least distance within which `_kept_sum` reaches `wanted`.

    The sum has one fixed order and rounding is monotonic, so bisection is exact.
    """
    low = tl.full((), 0, tl.int32)
    high = tl.full((), INFINITY_BITS, tl.int32)
    while low < high:
        middle = low + (high - low) // 2
        limit = middle.to(tl.float32, bitcast=True)
        if _kept_sum(logits, best, temperature, vocabulary, limit, BY_MASS, BLOCK) >= wanted:
            high = middle
        else:
            low = middle + 1
    return high.to(tl.float32, bitcast=True)


@triton.jit
def sample_kernel(
    logits,
    temperatures,
    top_ks,
    top_ps,
    min_p_limits,
    keys_0,
    keys_1,
    tokens,
    vocabulary,
    BLOCK: tl.constexpr,
):
    """Grid (rows,)."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * vocabulary
    given = tl.load(temperatures + row)
    is_greedy = given == 0.0
    temperature = tl.where(is_greedy, 1.0, given)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    limit = tl.where(is_greedy, 0.0, tl.load(min_p_limits + row))

    best_block = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = tl.load(logits + token, mask=token < vocabulary, other=float("-inf"))
        best_block = tl.maximum(best_block, value)
    best = tl.max(best_block, 0)

    limit_k = tl.full((), float("inf"), tl.float32)
    if (top_k > 0) & (top_k < vocabulary) & (given > 0.0):
        wanted = top_k.to(tl.float32)
        limit_k = _least_limit(logits, best, temperature, vocabulary, wanted, False, BLOCK)
    limit = tl.minimum(limit, limit_k)
    if (top_p < 1.0) & (given > 0.0):
        wanted = top_p * _kept_sum(logits, best, temperature, vocabulary, limit_k, True, BLOCK)
        limit = tl.minimum(
            limit, _least_limit(logits, best, temperature, vocabulary, wanted, True, BLOCK)
        )

    key_0 = tl.load(keys_0 + row)
    key_1 = tl.load(keys_1 + row)
    winner = tl.full((), 0, tl.int32)
    winner_score = tl.full((), float("-inf"), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        token = start + tl.arange(0, BLOCK)
        distance = _distances(logits, start, best, temperature, vocabulary, BLOCK)
        gumbel = gumbel_noise(token, key_0, key_1)
        score = tl.where(is_greedy, 0.0, gumbel) - distance
        score = tl.where(distance <= limit, score, float("-inf"))
        block_score = tl.max(score, 0)
        block_winner = tl.min(tl.where(score == block_score, token, vocabulary), 0)
        is_better = block_score > winner_score
        winner = tl.where(is_better, block_winner, winner)
        winner_score = tl.where(is_better, block_score, winner_score)
    tl.store(tokens + row, winner)


def sample_tokens_triton(logits_RV: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """As `sample_tokens`."""
    rows, vocabulary = logits_RV.shape
    device = logits_RV.device
    limits = np.array([min_p_limit(min_p) for min_p in inputs.min_p.tolist()], dtype=np.float32)
    floats = torch.from_numpy(np.stack((inputs.temperature, inputs.top_p, limits))).to(device)
    keys = row_keys(inputs.seed, inputs.choice, inputs.position)
    integers = torch.from_numpy(np.stack((inputs.top_k, *keys))).to(device)
    tokens = torch.empty(rows, dtype=torch.int32, device=device)
    if rows:
        sample_kernel[(rows,)](
            logits_RV,
            floats[0],
            integers[0],
            floats[1],
            floats[2],
            integers[1],
            integers[2],
            tokens,
            vocabulary,
            BLOCK=min(triton.next_power_of_2(vocabulary), MAX_BLOCK),
            num_warps=8,
        )
    return tokens

"""Triton: sampling without a sort, in four launches that many programs of a row share.

1. `sketch`: the greatest logit of each group of tokens, and its softmax mass.
2. `bound`: per row a distance from the best token within which the filters surely (top_k) or
   very likely (top_p) decide, read off the sketch.
3. `gather`: rows without top_k and top_p draw at once; of the others, tokens within the bound are
   listed and the whole mass is summed.
4. `choose`: per row, the exact boundaries by bisection on float bits over the short list (over the
   whole row where the list overflowed or top_p needs more), then the draw.

Distances are floats >= 0, so their bits order as integers. Masses are summed as integers, counts
too: no result depends on the order in which programs appended to a list.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from quire.kernels.sampling.inputs import SamplingInputs, SamplingTensors, row_parameters
from quire.kernels.sampling_noise.kernel import gumbel_noise, load_key

INFINITY_BITS = tl.constexpr(0x7F800000)
MASS_UNIT = tl.constexpr(2.0**42)
"""Masses count in 2^-42 of the best token's: 2^20 tokens sum to less than 2^63."""
UNLISTED_MASS = tl.constexpr(4.0)
"""Guess of the mass that a group has beyond the bound, in masses at the bound."""
NO_TOKEN = tl.constexpr(2**31 - 1)
BLOCK = 4096
"""Tokens of a program."""
GROUP, WIDE_GROUP = 32, 128
"""Tokens of a group of the sketch; a row's sketch must fit into one program."""
COARSE = tl.constexpr(2**20)
"""Width, in bits of distances, from which on a search reads its own copy: an eighth of an octave."""
LIST_SIZE = 16384
"""Tokens listed at most; a row that needs more is read whole."""


@triton.jit
def _filters(top_ks, top_ps, given, row, vocabulary):
    """top_k and top_p of the row, and whether each is on."""
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    has_k = (top_k > 0) & (top_k < vocabulary) & (given > 0.0)
    return top_k, top_p, has_k, (top_p < 1.0) & (given > 0.0)


@triton.jit
def sketch_kernel(
    logits, temperatures, maxima, masses, vocabulary, BLOCK: tl.constexpr, GROUP: tl.constexpr
):
    """Grid (rows, blocks of tokens). Tokens of a group are BLOCK / GROUP apart."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    groups: tl.constexpr = BLOCK // GROUP
    group = tl.arange(0, groups)
    token = block * BLOCK + tl.arange(0, GROUP)[:, None] * groups + group[None, :]
    value = tl.load(logits + row * vocabulary + token, mask=token < vocabulary, other=float("-inf"))
    given = tl.load(temperatures + row)
    temperature = tl.where(given == 0.0, 1.0, given)
    best = tl.max(value, 0)
    top = tl.where(best > float("-inf"), best, 0.0)[None, :]
    is_finite = value > float("-inf")
    distance = (top - tl.where(is_finite, value, top)) / temperature
    mass = tl.sum(tl.where(is_finite, tl.exp(-distance), 0.0), 0)
    place = (row * tl.num_programs(1) + block) * groups + group
    tl.store(maxima + place, best)
    tl.store(masses + place, mass)


@triton.jit
def bound_kernel(
    maxima,
    masses,
    temperatures,
    top_ks,
    top_ps,
    bests,
    bounds,
    counts,
    vocabulary,
    groups,
    GROUPS: tl.constexpr,
):
    """Grid (rows,). The bound of a row without top_k and top_p is -1."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    mask = group < groups
    best_of = tl.load(maxima + row * groups + group, mask=mask, other=float("-inf"))
    best = tl.max(best_of, 0)
    given = tl.load(temperatures + row)
    top_k, top_p, has_k, has_p = _filters(top_ks, top_ps, given, row, vocabulary)
    bound = tl.full((), -1.0, tl.float32)
    if has_k | has_p:
        is_finite = best_of > float("-inf")
        distance = tl.div_rn(tl.where(is_finite, best - best_of, float("inf")), given)
        top_mass = tl.exp(-distance)
        mass = tl.load(masses + row * groups + group, mask=mask, other=0.0) * top_mass
        wanted_mass = top_p * tl.sum(mass, 0)
        low = tl.full((), 0, tl.int32)
        high = tl.full((), INFINITY_BITS, tl.int32)
        while low < high:
            middle = low + (high - low) // 2
            limit = middle.to(tl.float32, bitcast=True)
            is_within = distance <= limit
            if has_k:
                is_enough = tl.sum(is_within.to(tl.int32), 0) >= top_k
            else:
                listed = tl.maximum(top_mass, mass - tl.exp(-limit) * UNLISTED_MASS)
                is_enough = tl.sum(tl.where(is_within, listed, 0.0), 0) >= wanted_mass
            high = tl.where(is_enough, middle, high)
            low = tl.where(is_enough, low, middle + 1)
        bound = high.to(tl.float32, bitcast=True)
    tl.store(bests + row, best)
    tl.store(bounds + row, bound)
    tl.store(counts + row, 0)


@triton.jit
def _best_of(score, token):
    """The greatest score and the lowest token that has it; NO_TOKEN for none above -inf."""
    best = tl.max(score, 0)
    winner = tl.min(tl.where((score == best) & (score > float("-inf")), token, NO_TOKEN), 0)
    return best, winner


@triton.jit
def _min_p_limit(min_ps, row):
    """As `reference.min_p_limit`; infinity where it is off."""
    min_p = tl.load(min_ps + row).to(tl.float64)
    limit = -tl.log(tl.where(min_p > 0.0, min_p, 1.0))
    return tl.where(min_p > 0.0, limit, float("inf")).to(tl.float32)


@triton.jit
def _mass(distance):
    return (tl.exp(-distance) * MASS_UNIT).to(tl.int64)


@triton.jit
def gather_kernel(
    logits, temperatures, top_ks, min_ps, seeds, choices, positions, bests, bounds, counts,
    scores, winners, row_masses, listed_distances, listed_tokens, vocabulary, BLOCK:
    tl.constexpr, LIST_SIZE: tl.constexpr,
):  # fmt: skip
    """Grid (rows, blocks of tokens)."""
    row = tl.program_id(0).to(tl.int64)
    place = row * tl.num_programs(1) + tl.program_id(1)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits + row * vocabulary + token, mask=token < vocabulary, other=float("nan"))
    given = tl.load(temperatures + row)
    is_greedy = given == 0.0
    distance = tl.div_rn(tl.load(bests + row) - value, tl.where(is_greedy, 1.0, given))
    bound = tl.load(bounds + row)
    if bound < 0.0:
        limit = tl.where(is_greedy, 0.0, _min_p_limit(min_ps, row))
        key_0, key_1 = load_key(seeds, choices, positions, row, 0, 0)
        score = tl.where(is_greedy, 0.0, gumbel_noise(token, key_0, key_1)) - distance
        score, winner = _best_of(tl.where(distance <= limit, score, float("-inf")), token)
        tl.store(scores + place, score)
        tl.store(winners + place, winner)
    else:
        top_k = tl.load(top_ks + row)
        if (top_k <= 0) | (top_k >= vocabulary):
            mass = tl.where(distance < float("inf"), _mass(tl.where(distance >= 0, distance, 0)), 0)
            tl.store(row_masses + place, tl.sum(mass, 0))
        is_listed = (distance <= bound) & (distance < float("inf"))
        count = tl.sum(is_listed.to(tl.int32), 0)
        if count > 0:
            index = tl.atomic_add(counts + row, count) + tl.cumsum(is_listed.to(tl.int32), 0) - 1
            is_listed &= index < LIST_SIZE
            tl.store(listed_distances + row * LIST_SIZE + index, distance, mask=is_listed)
            tl.store(listed_tokens + row * LIST_SIZE + index, token, mask=is_listed)


@triton.jit
def _distances(source, start, best, temperature, size, IS_LIST: tl.constexpr, BLOCK: tl.constexpr):
    """Distances of a block of tokens; NaN, which no limit keeps, past the end."""
    index = start + tl.arange(0, BLOCK)
    value = tl.load(source + index, mask=index < size, other=float("nan"))
    return value if IS_LIST else tl.div_rn(best - value, temperature)


@triton.jit
def _within(
    source, size, best, temperature, limit, BY_MASS: tl.constexpr, IS_LIST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The number of tokens within `limit`, or their mass."""
    total = tl.zeros((BLOCK,), dtype=tl.int64)
    for start in range(0, size, BLOCK):
        distance = _distances(source, start, best, temperature, size, IS_LIST, BLOCK)
        is_within = distance <= limit
        if BY_MASS:
            total += tl.where(is_within, _mass(tl.where(is_within, distance, 0.0)), 0)
        else:
            total += is_within.to(tl.int64)
    return tl.sum(total, 0)


@triton.jit
def _bisect(
    source, size, best, temperature, low, high, base, wanted, WIDTH: tl.constexpr,
    BY_MASS: tl.constexpr, IS_LIST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Halve [low, high], bits of distances, down to WIDTH around where `wanted` is reached."""
    while high - low > WIDTH:
        middle = low + (high - low) // 2
        limit = middle.to(tl.float32, bitcast=True)
        found = base + _within(source, size, best, temperature, limit, BY_MASS, IS_LIST, BLOCK)
        is_enough = found.to(tl.float64) >= wanted
        high = tl.where(is_enough, middle, high)
        low = tl.where(is_enough, low, middle + 1)
    return low, high


@triton.jit
def _least_limit(
    source, scratch, size, best, temperature, wanted, BY_MASS: tl.constexpr,
    IS_LIST: tl.constexpr, BLOCK: tl.constexpr, LIST_SIZE: tl.constexpr,
):  # fmt: skip
    """The least distance within which number or mass of tokens reaches `wanted`, a float64.

    A few halvings leave a narrow range; the tokens in it are copied to `scratch`, and the other
    halvings read those alone.
    """
    low = tl.full((), 0, tl.int32)
    high = tl.full((), INFINITY_BITS, tl.int32)
    nothing = tl.full((), 0, tl.int64)
    low, high = _bisect(
        source, size, best, temperature, low, high, nothing, wanted, COARSE, BY_MASS, IS_LIST,
        BLOCK,
    )  # fmt: skip
    base = tl.zeros((BLOCK,), dtype=tl.int64)
    count = tl.full((), 0, tl.int32)
    for start in range(0, size, BLOCK):
        distance = _distances(source, start, best, temperature, size, IS_LIST, BLOCK)
        is_below = distance < low.to(tl.float32, bitcast=True)
        if BY_MASS:
            base += tl.where(is_below, _mass(tl.where(is_below, distance, 0.0)), 0)
        else:
            base += is_below.to(tl.int64)
        is_inside = (distance < high.to(tl.float32, bitcast=True)) & (distance >= 0.0)
        is_inside &= is_below == 0
        index = count + tl.cumsum(is_inside.to(tl.int32), 0) - 1
        tl.store(scratch + index, distance, mask=is_inside & (index < LIST_SIZE))
        count += tl.sum(is_inside.to(tl.int32), 0)
    # What one thread wrote others read; what is read now may be overwritten by the next search.
    tl.debug_barrier()
    if count <= LIST_SIZE:
        low, high = _bisect(
            scratch, count, best, temperature, low, high, tl.sum(base, 0), wanted, 0, BY_MASS,
            True, BLOCK,
        )  # fmt: skip
    else:
        low, high = _bisect(
            source, size, best, temperature, low, high, nothing, wanted, 0, BY_MASS, IS_LIST,
            BLOCK,
        )  # fmt: skip
    tl.debug_barrier()
    return high.to(tl.float32, bitcast=True)


@triton.jit
def _choose(
    source, tokens, scratch, size, best, temperature, wanted_count, top_p, row_mass, limit, key_0,
    key_1, IS_LIST: tl.constexpr, BLOCK: tl.constexpr, LIST_SIZE: tl.constexpr,
):  # fmt: skip
    """The token that wins; `wanted_count` is 0 without top_k, and `row_mass` is not used with it."""
    limit_k = tl.full((), float("inf"), tl.float32)
    if wanted_count > 0:
        wanted = wanted_count.to(tl.float64)
        limit_k = _least_limit(
            source, scratch, size, best, temperature, wanted, False, IS_LIST, BLOCK, LIST_SIZE
        )
        limit = tl.minimum(limit, limit_k)
    if top_p < 1.0:
        if wanted_count > 0:
            row_mass = _within(source, size, best, temperature, limit_k, True, IS_LIST, BLOCK)
        wanted = top_p.to(tl.float64) * row_mass.to(tl.float64)
        limit_p = _least_limit(
            source, scratch, size, best, temperature, wanted, True, IS_LIST, BLOCK, LIST_SIZE
        )
        limit = tl.minimum(limit, limit_p)
    winner = tl.full((), 0, tl.int32)
    winner_score = tl.full((), float("-inf"), tl.float32)
    for start in range(0, size, BLOCK):
        distance = _distances(source, start, best, temperature, size, IS_LIST, BLOCK)
        token = start + tl.arange(0, BLOCK)
        if IS_LIST:
            token = tl.load(tokens + token, mask=token < size, other=0)
        score = gumbel_noise(token, key_0, key_1) - distance
        score, token = _best_of(tl.where(distance <= limit, score, float("-inf")), token)
        # A list is in no order: among equal scores the lowest token must win all the same.
        is_better = (score > winner_score) | ((score == winner_score) & (token < winner))
        winner = tl.where(is_better, token, winner)
        winner_score = tl.where(is_better, score, winner_score)
    return winner


@triton.jit
def choose_kernel(
    logits, temperatures, top_ks, top_ps, min_ps, seeds, choices, positions, bests, bounds,
    counts, scores, winners, row_masses, listed_distances, listed_tokens, scratch, tokens,
    vocabulary, blocks, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, LIST_SIZE: tl.constexpr,
):  # fmt: skip
    """Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    mask = block < blocks
    place = row * blocks + block
    if tl.load(bounds + row) < 0.0:
        score = tl.load(scores + place, mask=mask, other=float("-inf"))
        _, winner = _best_of(score, tl.load(winners + place, mask=mask, other=NO_TOKEN))
        tl.store(tokens + row, tl.where(winner == NO_TOKEN, 0, winner))
    else:
        temperature = tl.load(temperatures + row)
        top_k, top_p, has_k, has_p = _filters(top_ks, top_ps, temperature, row, vocabulary)
        best = tl.load(bests + row)
        limit = _min_p_limit(min_ps, row)
        key_0, key_1 = load_key(seeds, choices, positions, row, 0, 0)
        size = tl.load(counts + row)
        distances = listed_distances + row * LIST_SIZE
        row_mass = tl.full((), 0, tl.int64)
        wanted_count = tl.where(has_k, top_k, 0)
        is_enough = size <= LIST_SIZE
        if has_p & (wanted_count == 0):
            row_mass = tl.sum(tl.load(row_masses + place, mask=mask, other=0), 0)
            if is_enough:
                mass = _within(distances, size, best, temperature, float("inf"), True, True, BLOCK)
                is_enough = mass.to(tl.float64) >= top_p.to(tl.float64) * row_mass.to(tl.float64)
        room = scratch + row * LIST_SIZE
        if is_enough:
            listed = listed_tokens + row * LIST_SIZE
            winner = _choose(
                distances, listed, room, size, best, temperature, wanted_count, top_p, row_mass,
                limit, key_0, key_1, True, BLOCK, LIST_SIZE,
            )  # fmt: skip
        else:
            winner = _choose(
                logits + row * vocabulary, listed_tokens, room, vocabulary, best, temperature,
                wanted_count, top_p, row_mass, limit, key_0, key_1, False, BLOCK, LIST_SIZE,
            )  # fmt: skip
        tl.store(tokens + row, tl.where(winner == NO_TOKEN, 0, winner))


def sample_rows_triton(logits_RV: torch.Tensor, rows: SamplingTensors) -> torch.Tensor:
    """The tokens int32 [R]; nothing waits for the device, so a CUDA graph may hold it."""
    count, vocabulary = logits_RV.shape
    tokens = logits_RV.new_empty(count, dtype=torch.int32)
    if not count:
        return tokens
    group = GROUP if vocabulary <= 2**18 else WIDE_GROUP
    blocks = triton.cdiv(vocabulary, BLOCK)
    groups = blocks * (BLOCK // group)
    maxima, masses = logits_RV.new_empty(2, count, groups)
    bests, bounds = logits_RV.new_empty(count), logits_RV.new_empty(count)
    counts = torch.empty_like(tokens)
    scores = logits_RV.new_empty(count, blocks)
    winners = logits_RV.new_empty(count, blocks, dtype=torch.int32)
    row_masses = logits_RV.new_empty(count, blocks, dtype=torch.int64)
    listed_distances = logits_RV.new_empty(count, LIST_SIZE)
    listed_tokens = logits_RV.new_empty(count, LIST_SIZE, dtype=torch.int32)
    filters = (rows.temperature, rows.top_k, rows.top_p)
    key = (rows.min_p, rows.seed, rows.choice, rows.position)
    found = (bests, bounds, counts)
    gathered = (scores, winners, row_masses, listed_distances, listed_tokens)
    sketch_kernel[(count, blocks)](
        logits_RV, rows.temperature, maxima, masses, vocabulary, BLOCK, group, num_warps=4
    )
    bound_kernel[(count,)](
        maxima, masses, *filters, *found, vocabulary, groups, triton.next_power_of_2(groups),
        num_warps=16,
    )  # fmt: skip
    gather_kernel[(count, blocks)](
        logits_RV, *filters[:2], *key, *found, *gathered, vocabulary, BLOCK, LIST_SIZE, num_warps=16
    )
    choose_kernel[(count,)](
        logits_RV, *filters, *key, *found, *gathered, torch.empty_like(listed_distances), tokens,
        vocabulary, blocks, triton.next_power_of_2(blocks), BLOCK, LIST_SIZE, num_warps=16,
    )  # fmt: skip
    return tokens


def sample_tokens_triton(logits_RV: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """As `sample_tokens`."""
    return sample_rows_triton(logits_RV, inputs.to(logits_RV.device))


def topk_fused_sampling_triton(
    logits: torch.Tensor, top_k: torch.Tensor | int, **options: Any
) -> torch.Tensor:
    """As `topk_fused_sampling`."""
    return sample_rows_triton(logits, row_parameters(logits, top_k, **options))[:, None]

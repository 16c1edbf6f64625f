"""Triton: a stable counting sort by expert, without atomics and without waiting for the host."""

import torch
import triton
import triton.language as tl

from quire.kernels.moe_create_indices.indices import Indices, empty_indices

BLOCK = 1024


@triton.jit
def _expert_of(topk_ids, pair, pairs, num_experts):
    """The expert of each pair; foreign ones as `num_experts`, lanes behind the end as one more."""
    expert = tl.load(topk_ids + pair, mask=pair < pairs, other=0)
    expert = tl.where((expert < 0) | (expert >= num_experts), num_experts, expert)
    return tl.where(pair < pairs, expert, num_experts + 1)


@triton.jit(do_not_specialize=["pairs"])
def place_pairs_kernel(topk_ids, order, restore, counts, pairs, num_experts, BLOCK: tl.constexpr):
    """Grid (experts + 1,), the last for foreign pairs: every program reads all pairs, twice.

    The first time it counts those of lower experts, which is where its own group starts.
    """
    mine = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    lower = tl.zeros((BLOCK,), tl.int32)
    own = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, pairs, BLOCK):
        expert = _expert_of(topk_ids, first + lane, pairs, num_experts)
        lower += (expert < mine).to(tl.int32)
        own += (expert == mine).to(tl.int32)
    count = tl.sum(own, 0)
    tl.store(counts + mine, count)
    place = tl.sum(lower, 0)
    if count > 0:
        for first in range(0, pairs, BLOCK):
            pair = first + lane
            is_mine = _expert_of(topk_ids, pair, pairs, num_experts) == mine
            rank = tl.cumsum(is_mine.to(tl.int32), 0)
            tl.store(order + place + rank - 1, pair, mask=is_mine)
            tl.store(restore + pair, place + rank - 1, mask=is_mine)
            place += tl.sum(is_mine.to(tl.int32), 0)


@triton.jit(do_not_specialize=["pairs"])
def group_experts_kernel(
    counts, starts, expert_ids, stats, pairs, num_experts, BLOCK: tl.constexpr
):
    """Grid (1,): the groups that have pairs first, then the foreign one, then empty ones."""
    expert = tl.arange(0, BLOCK)
    is_expert = expert < num_experts
    count = tl.load(counts + expert, mask=is_expert, other=0)
    is_active = count > 0
    active = is_active.to(tl.int32)
    num_active = tl.sum(active, 0)
    end = tl.cumsum(count, 0)
    group = tl.cumsum(active, 0) - 1
    tl.store(expert_ids + group, expert, mask=is_active)
    tl.store(starts + group, end - count, mask=is_active)

    is_idle = is_expert & (count == 0)
    idle = tl.cumsum(is_idle.to(tl.int32), 0) - 1
    tl.store(expert_ids + num_active + idle, -1, mask=is_idle)
    tl.store(starts + num_active + 1 + idle, pairs, mask=is_idle)
    tl.store(starts + num_active, tl.sum(count, 0))
    tl.store(stats, tl.max(count, 0))
    tl.store(stats + 1, num_active)


def moe_create_indices_triton(topk_ids: torch.Tensor, num_local_experts: int) -> Indices:
    """As `moe_create_indices`."""
    pairs = topk_ids.shape[0]
    order, starts, restore, expert_ids, stats = empty_indices(topk_ids, num_local_experts)
    counts = topk_ids.new_empty(num_local_experts + 1)
    place_pairs_kernel[(num_local_experts + 1,)](
        topk_ids, order, restore, counts, pairs, num_local_experts, BLOCK=BLOCK, num_warps=4
    )
    group_experts_kernel[(1,)](
        counts,
        starts,
        expert_ids,
        stats,
        pairs,
        num_local_experts,
        BLOCK=triton.next_power_of_2(num_local_experts),
        num_warps=4,
    )
    return order, starts, restore, expert_ids, stats

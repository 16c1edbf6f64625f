"""Triton: the choice of experts, one program per token, its logits as a tile of groups."""

import torch
import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**63))


@triton.jit
def without_nan(value):
    return tl.where(value == value, value, -float("inf"))  # noqa: PLR0124


@triton.jit
def rank_key(value, index):
    """int64 that grows with the fp32 value, and among equals falls with the index; NaN as -inf."""
    value = without_nan(value)
    # Zeros of both signs are equal.
    value = tl.where(value == 0.0, 0.0, value)
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) + (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def moe_router_topk_kernel(
    logits,
    bias,
    weights,
    experts,
    num_groups,
    group_size,
    top_k,
    top_k_groups,
    routed_scaling,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCORING: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
    SUMS_TWO: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    """Grid (rows,). Keys are distinct, so that each pick takes exactly one expert."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_G)
    member = tl.arange(0, BLOCK_S)
    expert = group[:, None] * group_size + member[None, :]
    is_allowed = (group < num_groups)[:, None] & (member < group_size)[None, :]
    source = logits + row * num_groups * group_size + expert
    logit = tl.load(source, mask=is_allowed, other=-float("inf")).to(tl.float32)

    score = logit
    if SCORING == "softmax":
        power = tl.exp(logit - tl.max(tl.max(logit, 1), 0))
        score = power / tl.sum(tl.sum(power, 1), 0)
    elif SCORING == "sigmoid":
        score = 1.0 / (1.0 + tl.exp(-logit))
    biased = score
    choice = logit
    if HAS_BIAS:
        biased += tl.load(bias + expert, mask=is_allowed, other=0.0)
        choice = biased
    key = tl.where(is_allowed, rank_key(choice, expert), LOWEST)

    if HAS_GROUPS:
        if SUMS_TWO:
            value = tl.where(is_allowed, without_nan(biased), -float("inf"))
            value_key = rank_key(value, expert)
            is_first = value_key == tl.max(value_key, 1)[:, None]
            worth = tl.max(value, 1) + tl.max(tl.where(is_first, -float("inf"), value), 1)
        else:
            worth = tl.max(tl.where(is_allowed, without_nan(choice), -float("inf")), 1)
        group_key = tl.where(group < num_groups, rank_key(worth, group), LOWEST)
        is_chosen = group < 0
        for _ in range(top_k_groups):
            is_best = group_key == tl.max(group_key, 0)
            is_chosen = is_chosen | is_best
            group_key = tl.where(is_best, LOWEST, group_key)
        key = tl.where(is_chosen[:, None], key, LOWEST)

    slot = tl.arange(0, BLOCK_K)
    chosen = tl.zeros((BLOCK_K,), tl.int32)
    weight = tl.zeros((BLOCK_K,), tl.float32)
    for pick in range(top_k):
        best = tl.max(tl.max(key, 1), 0)
        is_best = key == best
        picked = tl.sum(tl.sum(tl.where(is_best, score, 0.0), 1), 0)
        index = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)
        chosen = tl.where(slot == pick, index, chosen)
        weight = tl.where(slot == pick, picked, weight)
        key = tl.where(is_best, LOWEST, key)

    is_slot = slot < top_k
    if SCORING == "softmax_top_k":
        logit_of_slot = tl.where(is_slot, weight, -float("inf"))
        power = tl.exp(logit_of_slot - tl.max(logit_of_slot, 0))
        weight = power / tl.sum(power, 0)
    elif RENORMALIZE:
        weight = weight / (tl.sum(weight, 0) + 1e-20)
    tl.store(weights + row * top_k + slot, weight * routed_scaling, mask=is_slot)
    tl.store(experts + row * top_k + slot, chosen, mask=is_slot)


def moe_router_topk_triton(
    logits_TE: torch.Tensor,
    top_k: int,
    correction_bias_E: torch.Tensor | None = None,
    *,
    scoring: str = "softmax",
    renormalize: bool = False,
    num_groups: int = 1,
    top_k_groups: int = 1,
    group_score: str = "max",
    routed_scaling: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `moe_router_topk`."""
    rows, num_experts = logits_TE.shape
    group_size = num_experts // num_groups
    weights = logits_TE.new_empty(rows, top_k, dtype=torch.float32)
    experts = logits_TE.new_empty(rows, top_k, dtype=torch.int32)
    block_g, block_s = triton.next_power_of_2(num_groups), triton.next_power_of_2(group_size)
    if rows:
        moe_router_topk_kernel[(rows,)](
            logits_TE,
            logits_TE if correction_bias_E is None else correction_bias_E,
            weights,
            experts,
            num_groups,
            group_size,
            top_k,
            top_k_groups,
            float(routed_scaling),
            BLOCK_G=block_g,
            BLOCK_S=block_s,
            BLOCK_K=triton.next_power_of_2(top_k),
            SCORING=scoring,
            HAS_BIAS=correction_bias_E is not None,
            HAS_GROUPS=num_groups > 1,
            SUMS_TWO=group_score == "top2_sum",
            RENORMALIZE=renormalize,
            num_warps=1 if block_g * block_s <= 256 else 2,
        )
    return weights, experts

"""The choice of experts of a mixture-of-experts layer."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_range, check_tensor
from quire.kernels.torch_op import torch_op

MAX_EXPERTS = 512
SCORINGS = ("softmax", "softmax_top_k", "sigmoid")
GROUP_SCORES = ("max", "top2_sum")


def _fake(logits_TE: torch.Tensor, top_k: int, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (logits_TE.shape[0], top_k)
    return (
        logits_TE.new_empty(shape, dtype=torch.float32),
        logits_TE.new_empty(shape, dtype=torch.int32),
    )


@torch_op(fake=_fake)
def moe_router_topk(
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
    """The `top_k` best experts of each token with their weights, best first; fp32 inside.

    Experts are compared by score + correction bias, without a bias by their logits (which scores
    rise with); equals go to the lower expert, NaN counts as -inf. Weights never contain the bias.
    With groups (expert e is in group e // (E / num_groups)) only experts of the `top_k_groups`
    best groups are considered; a group is worth its best expert ("max", DeepSeek-V2's
    group_limited_greedy) or the sum of its two best score + bias ("top2_sum", DeepSeek-V3's
    noaux_tc, https://arxiv.org/abs/2412.19437). A row's bits depend on that row alone.

    Args:
        logits_TE: [T, E], bfloat16, float16 or float32, contiguous; E at most 512.
        top_k: experts per token.
        correction_bias_E: [E] float32, or None.
        scoring: "softmax" over all experts (Mixtral, Qwen, DeepSeek-V2), "softmax_top_k" over
            the chosen logits (GPT-OSS) or "sigmoid" (DeepSeek-V3).
        renormalize: divide the weights of a token by their sum (plus 1e-20).
        num_groups: divides E.
        top_k_groups: groups that a token may choose from.
        group_score: "max" or "top2_sum".
        routed_scaling: factor on all weights, after renormalizing.

    Returns:
        weights_TK float32 [T, top_k] and experts_TK int32 [T, top_k].

    Raises:
        ValueError: a shape, dtype, device or option outside the above.
    """
    _check_scores(logits_TE, correction_bias_E, scoring, renormalize)
    _check_groups(logits_TE.shape[1], top_k, num_groups, top_k_groups, group_score)
    if logits_TE.is_cuda:
        from quire.kernels.moe_router.kernel import moe_router_topk_triton as run
    else:
        from quire.kernels.moe_router.cpu import moe_router_topk_cpu as run
    return run(
        logits_TE,
        top_k,
        correction_bias_E,
        scoring=scoring,
        renormalize=renormalize,
        num_groups=num_groups,
        top_k_groups=top_k_groups,
        group_score=group_score,
        routed_scaling=routed_scaling,
    )


def _check_scores(
    logits_TE: torch.Tensor,
    correction_bias_E: torch.Tensor | None,
    scoring: str,
    renormalize: bool,
) -> None:
    check_tensor("logits_TE", logits_TE, ("T", "E"), FLOATS)
    shape, device = (logits_TE.shape[1],), logits_TE.device
    check_range("the number of experts", shape[0], 1, MAX_EXPERTS)
    if correction_bias_E is not None:
        check_tensor("correction_bias_E", correction_bias_E, shape, torch.float32, device=device)
    if scoring not in SCORINGS:
        raise ValueError(f"scoring must be one of {SCORINGS}, got {scoring!r}")
    if scoring == "softmax_top_k" and renormalize:
        raise ValueError("renormalize must be False with scoring 'softmax_top_k', got True")


def _check_groups(
    experts: int, top_k: int, num_groups: int, top_k_groups: int, group_score: str
) -> None:
    if group_score not in GROUP_SCORES:
        raise ValueError(f"group_score must be one of {GROUP_SCORES}, got {group_score!r}")
    check_range("num_groups", num_groups, 1, experts)
    if experts % num_groups:
        raise ValueError(f"num_groups must divide {experts} experts, got {num_groups}")
    group_size = experts // num_groups
    if group_score == "top2_sum" and num_groups > 1 and group_size < 2:
        raise ValueError(
            f"group_score 'top2_sum' needs groups of at least 2 experts, got {group_size}"
        )
    check_range("top_k_groups", top_k_groups, 1, num_groups)
    check_range("top_k", top_k, 1, top_k_groups * group_size)

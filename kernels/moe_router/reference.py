"""The choice of experts in plain torch: the definition of correct."""

import torch


def moe_router_topk_reference(
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
    scores = logits = logits_TE.float()
    if scoring == "softmax":
        scores = logits.softmax(-1)
    elif scoring == "sigmoid":
        # Not torch.sigmoid: on a CPU its bits differ between vector body and scalar tail, so an
        # element's place would show in its value.
        scores = 1.0 / (1.0 + torch.exp(-logits))
    biased = scores if correction_bias_E is None else scores + correction_bias_E
    choice = _without_nan(logits if correction_bias_E is None else biased)
    order = _descending(choice)
    if num_groups > 1:
        of_groups = choice if group_score == "max" else _without_nan(biased)
        of_groups = of_groups.view(len(choice), num_groups, choice.shape[1] // num_groups)
        count = 1 if group_score == "max" else 2
        worth = _without_nan(of_groups.topk(count, -1).values.sum(-1))
        chosen = _descending(worth)[:, :top_k_groups]
        is_barred = torch.ones_like(worth, dtype=torch.bool).scatter_(1, chosen, False)
        is_barred = is_barred.repeat_interleave(choice.shape[1] // num_groups, 1)
        allowed_first = is_barred.gather(1, order).int().argsort(dim=1, stable=True)
        order = order.gather(1, allowed_first)
    experts = order[:, :top_k]
    weights = scores.gather(1, experts)
    if scoring == "softmax_top_k":
        weights = weights.softmax(-1)
    elif renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * routed_scaling, experts.to(torch.int32)


def _without_nan(values: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(values.isnan(), -torch.inf)


def _descending(values: torch.Tensor) -> torch.Tensor:
    """Column indices of each row from the greatest value to the least, equals in order."""
    return values.argsort(dim=1, descending=True, stable=True)

"""The mixture of experts in the place of a feed-forward part."""

import torch

from quire.kernels.activations import activation
from quire.kernels.moe_combine import moe_combine
from quire.kernels.moe_create_indices import moe_create_indices
from quire.kernels.moe_router import moe_router_topk
from quire.pipelines.architectures.moe_parts import MoESpec
from quire.pipelines.nn.experts import Experts, Groups
from quire.pipelines.nn.linear_weight import Apply


class MoE:
    """The weighted sum of what a token's experts give, plus the shared expert's part.

    `router` computes in float32 where `spec.router` says so. `correction_bias` float32 [E].
    """

    def __init__(
        self,
        spec: MoESpec,
        router: Apply,
        experts: Experts,
        *,
        correction_bias: torch.Tensor | None = None,
        shared: Apply | None = None,
        shared_gate: Apply | None = None,
    ) -> None:
        self.spec = spec
        self.router = router
        self.experts = experts
        self.correction_bias = correction_bias
        self.shared = shared
        self.shared_gate = shared_gate

    def __call__(self, x_TC: torch.Tensor) -> torch.Tensor:
        routed_TC = self._routed(x_TC)
        if self.shared is None:
            return routed_TC
        shared_TC = self.shared(x_TC)
        if self.shared_gate is not None:
            shared_TC = shared_TC * activation(self.shared_gate(x_TC), "sigmoid")
        return routed_TC + shared_TC

    def _routed(self, x_TC: torch.Tensor) -> torch.Tensor:
        top_k = self.spec.experts.top_k
        weights_TK, experts_TK = self.route(x_TC)
        groups = Groups(*moe_create_indices(experts_TK.flatten(), self.spec.experts.num_experts))
        if self.spec.weights_input:
            pairs_MC = (x_TC[:, None].float() * weights_TK[:, :, None]).to(x_TC.dtype).flatten(0, 1)
            out_MC = self.experts(pairs_MC, groups, 1)
            return moe_combine(out_MC, groups.restore, torch.ones_like(weights_TK))
        return moe_combine(self.experts(x_TC, groups, top_k), groups.restore, weights_TK)

    def route(self, x_TC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights float32 [T, K] of each token's experts, int32 [T, K]."""
        spec = self.spec
        return moe_router_topk(
            self.router(x_TC.float() if spec.router.in_float32 else x_TC),
            spec.experts.top_k,
            self.correction_bias,
            scoring=spec.scoring,
            renormalize=spec.renormalize,
            num_groups=spec.num_groups,
            top_k_groups=spec.top_k_groups,
            group_score=spec.group_score,
            routed_scaling=spec.routed_scaling,
        )

"""Top-k routing: the choices and weights of transformers' own routers, ties, and error texts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from quire.kernels.moe_router import moe_router_topk
from quire.kernels.moe_router.cases import ROUTERS
from quire.kernels.moe_router.kernel import moe_router_topk_triton

Route = Callable[..., tuple[torch.Tensor, torch.Tensor]]
PATHS = [
    pytest.param(moe_router_topk, id="cpu"),
    pytest.param(moe_router_topk_triton, id="triton"),
]
V3 = ROUTERS["deepseek-v3"]


def mixtral(experts: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = MixtralConfig(hidden_size=experts, num_local_experts=experts, num_experts_per_tok=2)
    return MixtralTopKRouter(config), ROUTERS["mixtral"]


def qwen(experts: int, renormalize: bool) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = Qwen3MoeConfig(
        hidden_size=experts,
        num_experts=experts,
        num_experts_per_tok=8,
        norm_topk_prob=renormalize,
    )
    return Qwen3MoeTopKRouter(config), {"top_k": 8, "renormalize": renormalize}


def gpt_oss(experts: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = GptOssConfig(hidden_size=experts, num_local_experts=experts, num_experts_per_tok=4)
    return GptOssTopKRouter(config), ROUTERS["gpt-oss"]


def deepseek_v2(experts: int, method: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = DeepseekV2Config(
        hidden_size=experts,
        n_routed_experts=experts,
        num_experts_per_tok=6,
        topk_method=method,
        n_group=8,
        topk_group=3,
        routed_scaling_factor=16.0,
    )
    options = ROUTERS["deepseek-v2"]
    if method == "greedy":
        options = {"top_k": 6, "routed_scaling": 16.0}
    return DeepseekV2TopkRouter(config), options


def deepseek_v3(experts: int, renormalize: bool) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = DeepseekV3Config(
        hidden_size=experts,
        n_routed_experts=experts,
        num_experts_per_tok=8,
        n_group=8,
        topk_group=4,
        norm_topk_prob=renormalize,
        routed_scaling_factor=2.5,
    )
    router = DeepseekV3TopkRouter(config)
    bias = torch.randn(experts, generator=torch.Generator().manual_seed(5)) / 10
    router.e_score_correction_bias.copy_(bias)
    return router, V3 | {"renormalize": renormalize, "correction_bias_E": bias}


ORACLES = {
    "mixtral": lambda: mixtral(8),
    "qwen3": lambda: qwen(128, True),
    "qwen3-plain": lambda: qwen(60, False),
    "gpt-oss": lambda: gpt_oss(32),
    "deepseek-v2": lambda: deepseek_v2(160, "group_limited_greedy"),
    "deepseek-v2-lite": lambda: deepseek_v2(64, "greedy"),
    "deepseek-v3": lambda: deepseek_v3(256, True),
    "deepseek-v3-plain": lambda: deepseek_v3(64, False),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("route", PATHS)
def test_equals_the_router_of_transformers(route: Route, name: str) -> None:
    router, options = ORACLES[name]()
    with torch.no_grad():
        router.weight.copy_(torch.eye(len(router.weight)))
        if name == "gpt-oss":
            router.bias.zero_()
    logits = 2 * torch.randn(2, len(router.weight), generator=torch.Generator().manual_seed(3))

    weights, experts = route(logits, **options)

    with torch.no_grad():
        _, expected_weights, expected = router(logits)
    order, expected_order = experts.argsort(1), expected.argsort(1)
    assert torch.equal(experts.gather(1, order).long(), expected.gather(1, expected_order))
    torch.testing.assert_close(
        weights.gather(1, order), expected_weights.gather(1, expected_order), atol=1e-6, rtol=4e-6
    )


@pytest.mark.parametrize("route", PATHS)
def test_the_best_come_first_and_equals_go_to_the_lower_expert(route: Route) -> None:
    logits = torch.tensor(
        [[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, -0.0, 0.0, -0.0, -1.0], [-1.0, -3.0, -2.0, -9.0, -1.0]]
    )

    weights, experts = route(logits, 4)

    assert experts.tolist() == [[1, 2, 4, 3], [0, 1, 2, 3], [0, 4, 2, 1]]
    torch.testing.assert_close(weights, logits.softmax(-1).gather(1, experts.long()))


@pytest.mark.parametrize("route", PATHS)
def test_equal_groups_go_to_the_lower_one(route: Route) -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0, 0.0, 5.0, 4.0]])

    _, best = route(logits, 2, num_groups=3, top_k_groups=1)
    _, sums = route(
        logits, 2, num_groups=3, top_k_groups=1, group_score="top2_sum", scoring="sigmoid"
    )
    _, all_of_two = route(logits, 4, num_groups=3, top_k_groups=2)

    assert best.tolist() == [[1, 0]]
    assert sums.tolist() == [[4, 5]]
    assert all_of_two.tolist() == [[1, 2, 0, 3]]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("options", [{}, {"num_groups": 2, "top_k_groups": 1}], ids=str)
@pytest.mark.parametrize("route", PATHS)
def test_ids_are_valid_and_distinct_whatever_the_logits(
    route: Route, options: dict[str, Any]
) -> None:
    """Experts index memory, so NaN and infinities must not lead outside."""
    bad = torch.nan, torch.inf, -torch.inf
    logits = torch.tensor([[value] * 6 for value in bad] + [[torch.nan, 1.0, torch.nan, *bad]])

    _, experts = route(logits, 3, **options)

    assert experts.min() >= 0
    assert experts.max() < 6
    assert all(len(set(row)) == 3 for row in experts.tolist())
    assert experts[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("route", PATHS)
def test_nan_is_chosen_last(route: Route) -> None:
    logits = torch.tensor([[torch.nan, 1.0, -torch.inf, 2.0]])

    _, experts = route(logits, 3, scoring="sigmoid")

    assert experts.tolist() == [[3, 1, 0]]


@pytest.mark.parametrize("route", PATHS)
def test_the_bias_chooses_and_does_not_weigh(route: Route) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, 9.0])

    weights, experts = route(logits, 2, bias, scoring="sigmoid")

    assert experts.tolist() == [[2, 0]]
    torch.testing.assert_close(weights, torch.tensor([[0.0, 2.0]]).sigmoid())


@pytest.mark.parametrize("route", PATHS)
def test_all_experts_can_be_chosen(route: Route) -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))

    weights, experts = route(logits, 5)

    assert experts.sort(1).values.tolist() == [[0, 1, 2, 3, 4]] * 2
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


@pytest.mark.parametrize("route", PATHS)
def test_no_rows_give_no_rows(route: Route) -> None:
    weights, experts = route(torch.empty(0, 8), 2)

    assert weights.shape == experts.shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits_TE": torch.ones(8)}, r"logits_TE must be \[T, E\], got \[8\]"),
        ({"logits_TE": torch.ones(2, 8).int()}, "logits_TE must be of bfloat16.*got int32"),
        ({"logits_TE": torch.ones(1, 513)}, "number of experts must be from 1 to 512, got 513"),
        ({"correction_bias_E": torch.ones(7)}, r"correction_bias_E must be \[8\], got \[7\]"),
        (
            {"correction_bias_E": torch.ones(8).half()},
            "correction_bias_E must be of float32, got float16",
        ),
        ({"scoring": "tanh"}, "scoring must be one of .*, got 'tanh'"),
        (
            {"scoring": "softmax_top_k", "renormalize": True},
            "renormalize must be False with scoring 'softmax_top_k', got True",
        ),
        ({"group_score": "mean"}, "group_score must be one of .*, got 'mean'"),
        ({"num_groups": 3}, "num_groups must divide 8 experts, got 3"),
        ({"num_groups": 0}, "num_groups must be from 1 to 8, got 0"),
        (
            {"num_groups": 8, "group_score": "top2_sum"},
            "'top2_sum' needs groups of at least 2 experts, got 1",
        ),
        ({"num_groups": 4, "top_k_groups": 5}, "top_k_groups must be from 1 to 4, got 5"),
        ({"num_groups": 4, "top_k": 3}, "top_k must be from 1 to 2, got 3"),
        ({"top_k": 0}, "top_k must be from 1 to 8, got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"logits_TE": torch.ones(2, 8), "top_k": 2} | changes
    with pytest.raises(ValueError, match=message):
        moe_router_topk(**given)

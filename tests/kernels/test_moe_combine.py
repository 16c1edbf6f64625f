"""The weighted sum over experts, and whole mixture-of-experts layers against transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from quire.kernels import grouped_matmul_ragged as grouped
from quire.kernels.grouped_matmul_ragged import kernel as grouped_kernel
from quire.kernels.grouped_matmul_ragged.cases import GPT_OSS
from quire.kernels.moe_combine import moe_combine
from quire.kernels.moe_combine.cases import SMALL_CASES
from quire.kernels.moe_combine.kernel import moe_combine_triton
from quire.kernels.moe_create_indices import moe_create_indices
from quire.kernels.moe_create_indices.kernel import moe_create_indices_triton
from quire.kernels.moe_router import moe_router_topk
from quire.kernels.moe_router.cases import ROUTERS
from quire.kernels.moe_router.kernel import moe_router_topk_triton

CPU = torch.device("cpu")
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Run = Callable[..., Any]
PATHS = [pytest.param(moe_combine, id="cpu"), pytest.param(moe_combine_triton, id="triton")]


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("combine", PATHS)
def test_is_near_float64(combine: Run, case: Any) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(2))
    weights = inputs["weights"].double()

    out = combine(**inputs)

    rows = inputs["expert_out"].double()[inputs["restore_token_order"]].unflatten(0, weights.shape)
    expected = torch.einsum("tkn,tk->tn", rows, weights)
    torch.testing.assert_close(out.double(), expected, atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("combine", PATHS)
def test_a_token_alone_has_the_bits_it_has_in_a_batch(combine: Run, same_bits: SameBits) -> None:
    generator = torch.Generator().manual_seed(3)
    rows, weights = torch.randn(15, 130, generator=generator), torch.rand(5, 3, generator=generator)
    order = torch.randperm(15, generator=generator).int()
    whole = combine(rows, order, weights)

    for token in range(5):
        own = rows[order[3 * token : 3 * token + 3]]
        alone = combine(own, torch.arange(3).int(), weights[token : token + 1])
        assert same_bits(alone, whole[token : token + 1]), token


@pytest.mark.parametrize("combine", PATHS)
def test_no_tokens_give_no_tokens(combine: Run) -> None:
    out = combine(torch.empty(0, 8), torch.empty(0, dtype=torch.int32), torch.empty(0, 2))

    assert out.shape == (0, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_out": torch.ones(6)}, r"expert_out must be \[T\*k, N\], got \[6\]"),
        ({"expert_out": torch.ones(6, 8).int()}, "expert_out must be of bfloat16.*got int32"),
        (
            {"restore_token_order": torch.ones(5).int()},
            r"restore_token_order must be \[6\], got \[5\]",
        ),
        (
            {"restore_token_order": torch.ones(6)},
            "restore_token_order must be of int32, got float32",
        ),
        ({"weights": torch.ones(6)}, r"weights must be \[T, k\], got \[6\]"),
        ({"weights": torch.ones(3, 2).half()}, "weights must be of float32, got float16"),
        ({"weights": torch.ones(2, 2)}, r"weights must have 6 entries .*, got \[2, 2\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "expert_out": torch.ones(6, 8),
        "restore_token_order": torch.arange(6).int(),
        "weights": torch.ones(3, 2),
    } | changes
    with pytest.raises(ValueError, match=message):
        moe_combine(**given)


@dataclass(frozen=True)
class Layer:
    """A mixture-of-experts layer of transformers, and the same weights for the ops."""

    block: torch.nn.Module
    router_weight: torch.Tensor
    routing: dict[str, Any]
    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


def randomized(block: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(7)
    for parameter in block.requires_grad_(False).parameters():
        parameter.copy_(
            torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        )
    return block


def mixtral() -> Layer:
    config = MixtralConfig(hidden_size=40, intermediate_size=24, num_local_experts=6)
    config._experts_implementation = "eager"
    block = randomized(MixtralSparseMoeBlock(config))
    experts = block.experts
    return Layer(
        block, block.gate.weight, ROUTERS["mixtral"], experts.gate_up_proj, experts.down_proj
    )


def qwen() -> Layer:
    config = Qwen3MoeConfig(
        hidden_size=32,
        moe_intermediate_size=20,
        num_experts=12,
        num_experts_per_tok=3,
        norm_topk_prob=True,
    )
    config._experts_implementation = "eager"
    block = randomized(Qwen3MoeSparseMoeBlock(config))
    experts = block.experts
    routing = {"top_k": 3, "renormalize": True}
    return Layer(block, block.gate.weight, routing, experts.gate_up_proj, experts.down_proj)


def gpt_oss() -> Layer:
    config = GptOssConfig(hidden_size=36, intermediate_size=28, num_local_experts=5)
    config._experts_implementation = "eager"
    block = randomized(GptOssMLP(config))
    block.router.bias.zero_()
    experts = block.experts
    return Layer(
        block,
        block.router.weight,
        ROUTERS["gpt-oss"],
        experts.gate_up_proj.mT.contiguous(),
        experts.down_proj.mT.contiguous(),
        experts.gate_up_proj_bias,
        experts.down_proj_bias,
    )


OPS: dict[str, tuple[Run, Run, Run, Run, Run]] = {
    "cpu": (
        moe_router_topk,
        moe_create_indices,
        grouped.grouped_matmul_swiglu_ragged,
        grouped.grouped_matmul_ragged,
        moe_combine,
    ),
    "triton": (
        moe_router_topk_triton,
        moe_create_indices_triton,
        grouped_kernel.grouped_matmul_swiglu_ragged_triton,
        grouped_kernel.grouped_matmul_ragged_triton,
        moe_combine_triton,
    ),
}


def forward(layer: Layer, x: torch.Tensor, path: str) -> torch.Tensor:
    route, create_indices, matmul_swiglu, matmul, combine = OPS[path]
    # One row at a time, so that torch's own matmul of the logits is exact too.
    logits = torch.cat([row[None] @ layer.router_weight.T for row in x])
    weights, experts = route(logits, **layer.routing)
    order, starts, restore, ids, _ = create_indices(experts.flatten(), len(layer.gate_up))
    gated = matmul_swiglu(
        x,
        layer.gate_up,
        starts,
        ids,
        bias=layer.gate_up_bias,
        token_expert_order=order,
        top_k=experts.shape[1],
        **(GPT_OSS if layer.gate_up_bias is not None else {}),
    )
    return combine(matmul(gated, layer.down, starts, ids, bias=layer.down_bias), restore, weights)


@pytest.mark.parametrize("path", OPS)
@pytest.mark.parametrize("make", [mixtral, qwen, gpt_oss])
def test_a_layer_equals_that_of_transformers(
    make: Callable[[], Layer], path: str, same_bits: SameBits
) -> None:
    layer = make()
    x = torch.randn(5, layer.gate_up.shape[2], generator=torch.Generator().manual_seed(1))

    out = forward(layer, x, path)

    with torch.no_grad():
        expected = layer.block(x[None])
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(out, expected[0], atol=2e-5, rtol=2e-5)
    for row in (0, 4):
        assert same_bits(forward(layer, x[row : row + 1], path), out[row : row + 1])

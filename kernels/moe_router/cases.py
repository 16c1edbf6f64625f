"""Cases of `moe_router_topk`: the routers of served models, in small and at their own sizes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation

ROUTERS: dict[str, dict[str, Any]] = {
    "mixtral": {"top_k": 2, "renormalize": True},
    "qwen": {"top_k": 8, "renormalize": True},
    "gpt-oss": {"top_k": 4, "scoring": "softmax_top_k"},
    "deepseek-v2": {"top_k": 6, "num_groups": 8, "top_k_groups": 3, "routed_scaling": 16.0},
    "deepseek-v3": {
        "top_k": 8,
        "scoring": "sigmoid",
        "renormalize": True,
        "num_groups": 8,
        "top_k_groups": 4,
        "group_score": "top2_sum",
        "routed_scaling": 2.5,
    },
}
"""Published routing options; DeepSeek-V3 also has a correction bias."""


def router_case(router: str, tokens: int, experts: int, dtype: torch.dtype) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        logits = 2 * torch.randn(tokens, experts, generator=generator)
        bias = 0.1 * torch.randn(experts, generator=generator)
        return {
            "logits_TE": logits.to(device, dtype),
            "correction_bias_E": bias.to(device) if router == "deepseek-v3" else None,
            **ROUTERS[router],
        }

    return Case(
        name=f"{router}-{tokens}x{experts}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance=1e-7,
        relative=4e-6,
        bytes_moved=tokens * (experts * dtype.itemsize + 8 * ROUTERS[router]["top_k"]),
        flops=tokens * experts * 4,
    )


SMALL_CASES = (
    router_case("mixtral", 5, 8, torch.float32),
    router_case("qwen", 3, 70, torch.bfloat16),
    router_case("gpt-oss", 3, 32, torch.float16),
    router_case("deepseek-v2", 3, 40, torch.float32),
    router_case("deepseek-v3", 3, 64, torch.float32),
    router_case("deepseek-v3", 3, 64, torch.bfloat16),
)

SIZES = {"mixtral": 8, "qwen": 128, "gpt-oss": 32, "deepseek-v2": 160, "deepseek-v3": 256}
SERVED_CASES = tuple(
    router_case(router, tokens, experts, torch.float32)
    for router, experts in SIZES.items()
    for tokens in (1, 32, 512)
)
"""For the benchmark: decode steps and a prefill chunk."""


def _torch(logits_TE: torch.Tensor, top_k: int, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    values, experts = logits_TE.float().softmax(-1).topk(top_k, -1)
    return values / values.sum(-1, keepdim=True), experts


OPERATIONS = (
    Operation(
        name="moe_router_topk",
        package="moe_router",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            router_case("qwen", 8, 512, torch.bfloat16),
            router_case("gpt-oss", 8, 32, torch.float32),
            router_case("deepseek-v2", 8, 160, torch.float32),
            router_case("deepseek-v3", 8, 256, torch.float32),
        ),
        row_inputs=("logits_TE",),
        peers={"softmax, topk": _torch},
    ),
)

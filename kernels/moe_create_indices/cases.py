"""Cases of `moe_create_indices`: experts without pairs in small, and served sizes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation


def indices_case(pairs: int, experts: int, low: int = 0) -> Case:
    """Ids from `low` to 1.2 * experts: negative ones and those from `experts` on are foreign."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        high = experts if low == 0 else experts + experts // 5
        ids = torch.randint(low, high, (pairs,), generator=generator, dtype=torch.int32)
        return {"topk_ids": ids.to(device), "num_local_experts": experts}

    return Case(
        name=f"{pairs}-of-{experts}{'-foreign' if low else ''}",
        dtype=torch.int32,
        build=build,
        tolerance=0.0,
        bytes_moved=4 * (3 * pairs + 2 * experts),
        flops=0,
    )


SMALL_CASES = (
    indices_case(0, 3),
    indices_case(1, 1),
    indices_case(14, 8),
    indices_case(1030, 5),
    indices_case(40, 7, low=-2),
    indices_case(300, 6, low=-1),
)

SERVED_CASES = tuple(
    indices_case(tokens * top_k, experts)
    for top_k, experts in ((2, 8), (8, 128), (8, 256))
    for tokens in (1, 32, 512)
)
"""For the benchmark: decode steps and a prefill chunk."""


def _torch(topk_ids: torch.Tensor, num_local_experts: int) -> tuple[torch.Tensor, ...]:
    order = topk_ids.argsort(stable=True)
    return order, order.argsort(), topk_ids.bincount(minlength=num_local_experts).cumsum(0)


OPERATIONS = (
    Operation(
        name="moe_create_indices",
        package="moe_create_indices",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(indices_case(256, 128),),
        peers={"argsort, bincount": _torch},
    ),
)

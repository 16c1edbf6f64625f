"""Cases of `moe_combine`: odd widths in small, and served shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation


def combine_case(tokens: int, top_k: int, columns: int, dtype: torch.dtype) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        rows = torch.randn(tokens * top_k, columns, generator=generator)
        order = torch.randperm(tokens * top_k, generator=generator, dtype=torch.int32)
        weights = torch.rand(tokens, top_k, generator=generator)
        return {
            "expert_out": rows.to(device, dtype),
            "restore_token_order": order.to(device),
            "weights": (weights / weights.sum(-1, keepdim=True)).to(device),
        }

    return Case(
        name=f"{tokens}x{top_k}x{columns}-{str(dtype)[6:]}",
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype],
        bytes_moved=tokens * (top_k * (columns * dtype.itemsize + 8) + columns * dtype.itemsize),
        flops=2 * tokens * top_k * columns,
    )


SMALL_CASES = tuple(
    combine_case(tokens, top_k, columns, dtype)
    for tokens, top_k, columns in ((1, 1, 1), (3, 2, 1100), (4, 5, 70))
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
)

SERVED_CASES = tuple(
    combine_case(tokens, top_k, columns, torch.bfloat16)
    for top_k, columns in ((2, 4096), (8, 2048), (4, 2880))
    for tokens in (1, 32, 512)
)
"""For the benchmark: decode steps and a prefill chunk."""


def _torch(
    expert_out: torch.Tensor, restore_token_order: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    rows = expert_out[restore_token_order].view(*weights.shape, -1)
    return torch.einsum("tkn,tk->tn", rows, weights.to(rows.dtype))


OPERATIONS = (
    Operation(
        name="moe_combine",
        package="moe_combine",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(combine_case(8, 8, 2048, torch.bfloat16),),
        peers={"gather, einsum": _torch},
    ),
)

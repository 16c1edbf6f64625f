"""Cases of `rms_norm_key_cache`: norms per head, per token and of leading elements."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch
from quire.kernels.split_qkv_ragged.cases import STEP


def key_norm_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int],
    *,
    lengths: tuple[tuple[int, int], ...] = STEP,
    columns: int | None = None,
    per_head: bool = True,
    multiply_before_cast: bool = True,
    weight_offset: float = 0.0,
) -> Case:
    """A case of `heads` (K, D); `columns` None is a norm of all of a head or token."""
    kv_heads, head_dim = heads
    width = columns or (head_dim if per_head else kv_heads * head_dim)
    tokens = sum(new for new, _ in lengths)

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, 16, device, generator)
        cache = torch.randn(num_pages, kv_heads, 16, head_dim, generator=generator)
        return {
            "k_cache": cache.to(device, dtype),
            "gamma": (torch.rand(width, generator=generator) + 0.5).to(device, dtype),
            "epsilon": 1e-6,
            "batch": batch,
            "weight_offset": weight_offset,
            "rms_norm_cols": columns,
            "multiply_before_cast": multiply_before_cast,
            "per_head_norm": per_head,
        }

    norms = kv_heads if per_head else 1
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 4e-6, torch.float16: 8e-3, torch.bfloat16: 6e-2}[dtype],
        bytes_moved=(2 * tokens * norms + 1) * width * dtype.itemsize,
        flops=5 * tokens * norms * width,
    )


SMALL_CASES = (
    key_norm_case("fp32", torch.float32, (2, 20)),
    key_norm_case("bf16-gemma", torch.bfloat16, (2, 64), weight_offset=1.0),
    key_norm_case("fp16-qwen", torch.float16, (1, 48), multiply_before_cast=False),
    key_norm_case("fp32-per-token", torch.float32, (3, 24), per_head=False),
    key_norm_case("bf16-some", torch.bfloat16, (2, 40), columns=27),
    key_norm_case("fp32-per-token-some", torch.float32, (3, 24), columns=40, per_head=False),
)
SERVED_CASES = tuple(
    key_norm_case(
        f"{tokens}-tokens{'' if per_head else '-per-token'}",
        torch.bfloat16,
        (8, 128),
        lengths=((1, 255),) * tokens if tokens <= 32 else ((tokens, 0),),
        per_head=per_head,
    )
    for tokens in (32, 512)
    for per_head in (True, False)
)
"""For the benchmark: a decode step and a prefill chunk of an 8B model."""
OPERATIONS = (
    Operation(
        name="rms_norm_key_cache",
        package="rms_norm_key_cache",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            key_norm_case("bf16", torch.bfloat16, (8, 128)),
            key_norm_case("bf16-per-token", torch.bfloat16, (32, 128), per_head=False),
        ),
        mutates=("k_cache",),
    ),
)

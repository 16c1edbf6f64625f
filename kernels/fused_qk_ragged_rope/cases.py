"""Cases of `fused_qk_ragged_rope`: small ones with every feature, and served shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch


def rope_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lengths: tuple[tuple[int, int], ...],
    page_size: int = 16,
    normed: tuple[bool, bool] = (False, False),
) -> Case:
    """A case of `heads` (H, K, D), `lengths` (tokens, keys before) and norms of (q, k).

    The caches come filled with NaN, so that a slot that stays unwritten shows.
    """
    num_heads, kv_heads, head_dim = heads
    tokens = sum(new for new, _ in lengths)
    columns = (num_heads + 2 * kv_heads) * head_dim

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, page_size, device, generator)
        frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.arange(max(batch.kv_lengths), dtype=torch.float64)[:, None] * frequencies
        cache = torch.full((num_pages, kv_heads, page_size, head_dim), torch.nan, dtype=dtype)
        qkv = torch.randn(tokens, columns, generator=generator).to(dtype)
        weights = [
            (torch.rand(head_dim, generator=generator) + 0.5).to(device, dtype) if flag else None
            for flag in normed
        ]
        return {
            "qkv": qkv.to(device),
            "cos_sin": torch.cat((angles.cos(), angles.sin()), 1).to(device, torch.float32),
            "k_cache": cache.to(device),
            "v_cache": cache.clone().to(device),
            "batch": batch,
            "num_heads": num_heads,
            "q_norm": weights[0],
            "k_norm": weights[1],
            "epsilon": 1e-5,
        }

    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=6e-2 if dtype == torch.bfloat16 else 4e-6,
        bytes_moved=2 * tokens * columns * dtype.itemsize + tokens * head_dim * 4,
        flops=3 * tokens * (num_heads + kv_heads) * head_dim,
    )


MIXED = ((1, 0), (1, 37), (5, 0), (7, 50), (1, 90))

SMALL_CASES = (
    rope_case("fp32", torch.float32, (4, 2, 32), MIXED),
    rope_case("bf16", torch.bfloat16, (14, 2, 64), MIXED, 32),
    rope_case("norms-fp32", torch.float32, (4, 2, 32), MIXED, 16, (True, True)),
    rope_case("norms-bf16", torch.bfloat16, (4, 2, 128), MIXED, 64, (True, True)),
    rope_case("q-norm-only", torch.float32, (3, 3, 16), MIXED, 16, (True, False)),
    rope_case("k-norm-only", torch.float32, (3, 1, 80), MIXED, 128, (False, True)),
)

SERVED_CASES = tuple(
    rope_case(
        f"{tokens}-tokens-h{heads[0]}k{heads[1]}d{heads[2]}{'-norms' if norm else ''}",
        torch.bfloat16,
        heads,
        ((1, 255),) * tokens if tokens <= 32 else ((tokens, 0),),
        32,
        (norm, norm),
    )
    for tokens in (8, 32, 512)
    for heads, norm in (((14, 2, 64), False), ((32, 8, 128), True))
)
"""For the benchmark: decode steps and a prefill chunk of a 0.5B and of an 8B model."""

CASES = SMALL_CASES + SERVED_CASES
STEP = ((1, 40), (1, 900), (30, 0))
OPERATIONS = (
    Operation(
        name="fused_qk_ragged_rope",
        package="fused_qk_ragged_rope",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            rope_case("bf16-d64", torch.bfloat16, (14, 2, 64), STEP, 32),
            rope_case("bf16-d128-norms", torch.bfloat16, (32, 8, 128), STEP, 64, (True, True)),
            rope_case("fp32-d80", torch.float32, (4, 4, 80), STEP),
        ),
        mutates=("k_cache", "v_cache"),
    ),
)

"""Cases of `fused_latent_ragged_rope`: both layouts of pairs, and DeepSeek's shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch

MIXED = ((1, 0), (1, 37), (5, 0), (21, 50), (1, 90))


def latent_rope_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int, int],
    lengths: tuple[tuple[int, int], ...] = MIXED,
    *,
    page_size: int = 16,
    interleaved: bool = True,
    by_head: bool = False,
) -> Case:
    """A case of `heads` (H, N, L, R) and `lengths`: (tokens of this step, keys before) per context.

    The cache comes filled with NaN, so that a slot that stays unwritten shows. `by_head`: absorbed
    queries lie by head, then token.
    """
    num_heads, nope_dim, latent_dim, rope_dim = heads
    tokens = sum(new for new, _ in lengths)
    width = latent_dim + rope_dim

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, page_size, device, generator)
        frequencies = 10000.0 ** -(torch.arange(0, rope_dim, 2, dtype=torch.float64) / rope_dim)
        angles = torch.arange(max(batch.kv_lengths), dtype=torch.float64)[:, None] * frequencies

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        shape = (num_heads, tokens) if by_head else (tokens, num_heads)
        absorbed = random(*shape, latent_dim)
        return {
            "q_THD": random(tokens, num_heads, nope_dim + rope_dim),
            "absorbed_THL": absorbed.transpose(0, 1) if by_head else absorbed,
            "kv_TD": random(tokens, width),
            "kv_norm": (torch.rand(latent_dim, generator=generator) + 0.5).to(device, dtype),
            "cos_sin": torch.cat((angles.cos(), angles.sin()), 1).to(device, torch.float32),
            "latent_cache": torch.full(
                (num_pages, page_size, width), torch.nan, dtype=dtype, device=device
            ),
            "batch": batch,
            "epsilon": 1e-6,
            "interleaved": interleaved,
        }

    read = num_heads * (latent_dim + rope_dim) + width
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype],
        bytes_moved=2 * tokens * read * dtype.itemsize,
        flops=tokens * (3 * num_heads * rope_dim + 5 * latent_dim),
    )


SMALL_CASES = (
    latent_rope_case("interleaved-fp32", torch.float32, (3, 12, 24, 8)),
    latent_rope_case("halves-bf16", torch.bfloat16, (5, 16, 32, 16), interleaved=False),
    latent_rope_case("by-head-fp16", torch.float16, (2, 8, 40, 12), by_head=True),
    latent_rope_case("one-head-fp32", torch.float32, (1, 8, 16, 2), page_size=32, by_head=True),
)
OPERATIONS = (
    Operation(
        name="fused_latent_ragged_rope",
        package="fused_latent_ragged_rope",
        small=SMALL_CASES,
        served=tuple(
            latent_rope_case(
                f"{tokens}-tokens-h{num_heads}",
                torch.bfloat16,
                (num_heads, 128, 512, 64),
                ((1, 255),) * tokens if tokens <= 32 else ((tokens, 0),),
                page_size=64,
                by_head=True,
            )
            for num_heads in (16, 128)
            for tokens in (1, 32, 512)
        ),
        compiled=(
            latent_rope_case("bf16", torch.bfloat16, (16, 128, 512, 64), page_size=64),
            latent_rope_case(
                "bf16-halves", torch.bfloat16, (40, 64, 256, 32), interleaved=False, by_head=True
            ),
        ),
        mutates=("latent_cache",),
    ),
)
"""Heads of DeepSeek-V2-Lite and of V3."""

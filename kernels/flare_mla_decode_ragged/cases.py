"""Cases of `flare_mla_decode_ragged`: small ones with every feature, and DeepSeek's shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch

TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def latent_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lengths: tuple[tuple[int, int], ...],
    page_size: int = 16,
) -> Case:
    """A case of `heads` (H, L, R) and `lengths`: (tokens of this step, keys before) per context.

    Memory that no token has written holds NaN, as stale pages may.
    """
    num_heads, latent_dim, rope_dim = heads
    width = latent_dim + rope_dim

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, page_size, device, generator)
        keys = torch.arange(batch.lookup_table.shape[1] * page_size)
        context, key = (keys < torch.tensor(batch.kv_lengths)[:, None]).nonzero(as_tuple=True)
        page = batch.lookup_table.cpu().long()[context, key // page_size]
        cache = torch.full((num_pages, page_size, width), torch.nan, dtype=dtype)
        cache[page, key % page_size] = torch.randn(len(key), width, generator=generator).to(dtype)
        q = torch.randn(sum(new), num_heads, width, generator=generator).to(dtype)
        return {
            "q_THD": q.to(device),
            "latent_cache": cache.to(device),
            "batch": batch,
            "scale": width**-0.5,
            "qk_rope_dim": rope_dim,
        }

    tokens = sum(new for new, _ in lengths)
    keys_read = sum(new + old for new, old in lengths)
    pairs = sum(new * old + new * (new + 1) // 2 for new, old in lengths)
    elements = tokens * num_heads * (width + latent_dim) + keys_read * width
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=TOLERANCE[dtype],
        bytes_moved=elements * dtype.itemsize,
        flops=2 * num_heads * (width + latent_dim) * pairs,
    )


MIXED = ((1, 0), (1, 37), (1, 600), (5, 0), (21, 50), (1, 90))
"""Decode and prefill rows; a context over one split of 512 keys; a last chunk of one token."""

SMALL_CASES = (
    latent_case("mixed-fp32", torch.float32, (3, 32, 16), MIXED),
    latent_case("mixed-bf16", torch.bfloat16, (16, 64, 32), MIXED, 64),
    latent_case("odd-widths-fp16", torch.float16, (5, 40, 8), ((1, 30), (9, 20))),
    latent_case("decode-only", torch.float32, (33, 16, 8), ((1, 15), (1, 511), (1, 512))),
    latent_case("prefill-only", torch.bfloat16, (2, 32, 16), ((2, 0), (17, 0), (40, 480)), 32),
    latent_case("deepseek-widths", torch.bfloat16, (4, 512, 64), ((1, 40), (3, 30))),
)


def _served(num_heads: int) -> tuple[Case, ...]:
    heads = (num_heads, 512, 64)
    shape = f"h{num_heads}"
    return (
        *(
            latent_case(
                f"decode-b{contexts}-ctx{keys}-{shape}",
                torch.bfloat16,
                heads,
                ((1, keys - 1),) * contexts,
                64,
            )
            for contexts in (1, 32)
            for keys in (1024, 8192)
        ),
        latent_case(f"prefill-512-{shape}", torch.bfloat16, heads, ((512, 0),), 64),
    )


STEP = ((1, 40), (1, 900), (30, 0))
OPERATIONS = (
    Operation(
        name="flare_mla_decode_ragged",
        package="flare_mla_decode_ragged",
        small=SMALL_CASES,
        served=_served(16) + _served(128),
        compiled=(
            latent_case("bf16-h16", torch.bfloat16, (16, 512, 64), STEP, 64),
            latent_case("bf16-h128", torch.bfloat16, (128, 512, 64), STEP, 64),
            latent_case("fp32-h8", torch.float32, (8, 256, 64), STEP[2:], 64),
        ),
    ),
)
"""Heads of DeepSeek-V2-Lite, or of V3 on one of eight GPUs, and all of V3."""

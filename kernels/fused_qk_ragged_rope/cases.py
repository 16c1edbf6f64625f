"""Cases of `fused_qk_ragged_rope`: small ones with every feature, and served shapes."""

from dataclasses import dataclass
from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch
from quire.kernels.split_qkv_ragged.cases import empty_caches


@dataclass(frozen=True)
class Variant:
    """How a family of models differs from Llama; `rotary_dim` None is all of the head."""

    rotary_dim: int | None = None
    interleaved: bool = False
    is_norm_whole: bool = False
    norm_weight_offset: float = 0.0
    multiply_before_cast: bool = False
    cache_dtype: torch.dtype | None = None


LLAMA = Variant()
GPT_J = Variant(rotary_dim=16, interleaved=True)
COHERE = Variant(interleaved=True)
PHI = Variant(rotary_dim=12)
GEMMA = Variant(norm_weight_offset=1.0, multiply_before_cast=True)
OLMO = Variant(is_norm_whole=True, multiply_before_cast=True)
FP8_CACHE = Variant(cache_dtype=torch.float8_e4m3fn)


def rope_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lengths: tuple[tuple[int, int], ...],
    page_size: int = 16,
    normed: tuple[bool, bool] = (False, False),
    variant: Variant = LLAMA,
) -> Case:
    """A case of `heads` (H, K, D), `lengths` (tokens, keys before) and norms of (q, k).

    The caches come filled with NaN, so that a slot that stays unwritten shows.
    """
    is_fp8 = variant.cache_dtype is not None
    num_heads, kv_heads, head_dim = heads
    norm_heads = (num_heads, kv_heads) if variant.is_norm_whole else (1, 1)
    tokens = sum(new for new, _ in lengths)
    columns = (num_heads + 2 * kv_heads) * head_dim

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, page_size, device, generator)
        rotary_dim = variant.rotary_dim or head_dim
        pairs = torch.arange(0, rotary_dim, 2, dtype=torch.float64)
        frequencies = 10000.0 ** -(pairs / rotary_dim)
        angles = torch.arange(max(batch.kv_lengths), dtype=torch.float64)[:, None] * frequencies
        stored = variant.cache_dtype or dtype
        caches = empty_caches(num_pages, (kv_heads, head_dim), page_size, stored, device)
        qkv = torch.randn(tokens, columns, generator=generator).to(dtype)
        weights = [
            (torch.rand(n * head_dim, generator=generator) + 0.5).to(device, dtype) if has else None
            for has, n in zip(normed, norm_heads, strict=True)
        ]
        return {
            "qkv": qkv.to(device),
            "cos_sin": torch.cat((angles.cos(), angles.sin()), 1).to(device, torch.float32),
            "k_cache": caches[0],
            "v_cache": caches[1],
            "batch": batch,
            "num_heads": num_heads,
            "q_norm": weights[0],
            "k_norm": weights[1],
            "epsilon": 1e-5,
            "interleaved": variant.interleaved,
            "norm_weight_offset": variant.norm_weight_offset,
            "multiply_before_cast": variant.multiply_before_cast,
            "k_scale": 0.25 if is_fp8 else 1.0,
            "v_scale": 0.003 if is_fp8 else 1.0,
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

STEP = ((1, 40), (3, 0))
BOTH = (True, True)
VARIANT_CASES = (
    rope_case("cohere-fp32", torch.float32, (4, 2, 20), STEP, variant=COHERE),
    rope_case("gptj-bf16", torch.bfloat16, (3, 1, 40), STEP, variant=GPT_J),
    rope_case("phi-fp32", torch.float32, (4, 2, 32), STEP, variant=PHI),
    rope_case("phi-norms-bf16", torch.bfloat16, (4, 2, 80), STEP, 16, BOTH, PHI),
    rope_case("gptj-norms-fp32", torch.float32, (2, 2, 24), STEP, 16, BOTH, GPT_J),
    rope_case("gemma-fp32", torch.float32, (4, 1, 32), STEP, 16, BOTH, GEMMA),
    rope_case("gemma-bf16", torch.bfloat16, (4, 1, 64), STEP, 16, BOTH, GEMMA),
    rope_case("olmo-fp32", torch.float32, (10, 4, 24), STEP, 16, BOTH, OLMO),
    rope_case("olmo-bf16", torch.bfloat16, (9, 2, 128), STEP, 16, BOTH, OLMO),
    rope_case("fp8-cache-fp32", torch.float32, (4, 2, 32), STEP, variant=FP8_CACHE),
    rope_case("fp8-cache-bf16", torch.bfloat16, (4, 2, 32), STEP, variant=FP8_CACHE),
)
"""Other families than Llama and Qwen3, and caches of another dtype than qkv."""

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

CASES = SMALL_CASES + VARIANT_CASES + SERVED_CASES
OPERATIONS = (
    Operation(
        name="fused_qk_ragged_rope",
        package="fused_qk_ragged_rope",
        small=SMALL_CASES + VARIANT_CASES,
        served=SERVED_CASES,
        compiled=(
            rope_case("bf16-d64", torch.bfloat16, (14, 2, 64), STEP, 32),
            rope_case("bf16-d128-norms", torch.bfloat16, (32, 8, 128), STEP, 64, BOTH),
            rope_case("fp32-d80", torch.float32, (4, 4, 80), STEP),
            rope_case("bf16-gptj", torch.bfloat16, (16, 16, 256), STEP, variant=GPT_J),
            rope_case("bf16-phi", torch.bfloat16, (32, 32, 80), STEP, variant=PHI),
            rope_case("bf16-olmo", torch.bfloat16, (32, 32, 128), STEP, 32, BOTH, OLMO),
            rope_case("bf16-fp8", torch.bfloat16, (32, 8, 128), STEP, variant=FP8_CACHE),
        ),
        mutates=("k_cache", "v_cache"),
    ),
)

"""Cases of the ops of latent prefill: small ones with every feature, and DeepSeek's shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch
from quire.kernels.flare_mla_prefill.reference import flare_mla_prefill_plan_reference

TOLERANCE = {torch.float32: 4e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
Lengths = tuple[tuple[int, int], ...]


def plan_case(name: str, lengths: Lengths, buffer_size: int, max_chunks: int) -> Case:
    """A case of `lengths`: (tokens of this step, keys before) per context."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, _ = random_ragged_batch(new, old, 16, device, generator)
        return {"batch": batch, "buffer_size": buffer_size, "max_chunks": max_chunks}

    size = 4 * (2 * len(lengths) + max_chunks * (2 * len(lengths) + 2))
    return Case(name, torch.float32, build, tolerance=0.0, bytes_moved=size, flops=0)


def decompress_case(
    name: str,
    dtype: torch.dtype,
    widths: tuple[int, int, int],
    lengths: Lengths,
    buffer_size: int,
    chunk: int = 0,
) -> Case:
    """A case of `widths` (columns of a latent, those read, columns of the result)."""
    width, latent_dim, columns = widths

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, 16, device, generator)
        rows, firsts, filled = flare_mla_prefill_plan_reference(batch, buffer_size)
        cache = torch.randn(num_pages, 16, width, generator=generator).to(dtype)
        weight = torch.randn(columns, latent_dim, generator=generator) * latent_dim**-0.5
        return {
            "latent_cache": cache.to(device),
            "lookup_table": batch.lookup_table,
            "buffer_row_offsets_1d": rows[chunk],
            "cache_offsets_1d": firsts[chunk],
            "buffer_length": filled[chunk : chunk + 1],
            "weight": weight.to(device, dtype),
            "buffer_size": buffer_size,
        }

    elements = buffer_size * (latent_dim + columns) + columns * latent_dim
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance={torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype],
        bytes_moved=elements * dtype.itemsize,
        flops=2 * buffer_size * latent_dim * columns,
    )


def prefill_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int, int],
    lengths: Lengths,
    buffer_size: int,
    chunk: int = 0,
    rope_in_cache: bool = False,
) -> Case:
    """A case of `heads` (H, nope, rope, V) and one chunk, with an earlier state if it is not 0.

    Rows of the buffer past its length hold NaN.
    """
    num_heads, nope, rope, value_dim = heads
    head_dim = nope + rope
    key_dim = nope if rope_in_cache else head_dim

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, 16, device, generator)
        rows, firsts, filled = flare_mla_prefill_plan_reference(batch, buffer_size)
        kv = torch.randn(buffer_size, num_heads, key_dim + value_dim, generator=generator)
        kv[int(filled[chunk]) :] = torch.nan
        k, v = torch.split(kv.to(device, dtype), [key_dim, value_dim], -1)
        q = torch.randn(sum(new), num_heads, head_dim, generator=generator)
        cache = torch.randn(num_pages, 16, 2 * rope, generator=generator).to(device, dtype)
        earlier = torch.randn(sum(new), num_heads, value_dim, generator=generator)
        info = torch.rand(sum(new), num_heads, 2, generator=generator)
        return {
            "q": q.to(device, dtype),
            "k": k,
            "v": v,
            "batch": batch,
            "buffer_row_offsets": rows[chunk],
            "cache_offsets": firsts[chunk],
            "scale": head_dim**-0.5,
            "latent_cache": cache if rope_in_cache else None,
            "qk_rope_dim": rope,
            "prev_output": earlier.to(device, dtype) if chunk else None,
            "prev_softmax_info": info.to(device) if chunk else None,
            "output_dtype": torch.float32 if chunk else None,
        }

    tokens = sum(new for new, _ in lengths)
    pairs = sum(new * old + new * (new + 1) // 2 for new, old in lengths)
    elements = (tokens + buffer_size) * num_heads * (head_dim + value_dim)
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=TOLERANCE[dtype],
        relative=4e-6,
        bytes_moved=elements * dtype.itemsize,
        flops=2 * num_heads * (head_dim + value_dim) * pairs,
    )


MIXED = ((1, 20), (5, 0), (70, 30), (1, 9))
DEEPSEEK = (16, 128, 64, 128)
KV_B = (576, 512, 16 * 256)

PLAN = Operation(
    name="flare_mla_prefill_plan",
    package="flare_mla_prefill",
    small=(
        plan_case("three-chunks", MIXED, 50, 4),
        plan_case("one-chunk", MIXED, 1000, 1),
        plan_case("one-row-chunks", ((1, 3), (2, 0)), 1, 6),
        plan_case("over-one-block", ((1, 2),) * 300, 64, 16),
    ),
    served=(plan_case("b32", ((1, 4096),) * 24 + ((512, 1024),) * 8, 32768, 16),),
    compiled=(plan_case("step", MIXED, 50, 4),),
)
DECOMPRESS = Operation(
    name="flare_mla_decompress_k_cache",
    package="flare_mla_prefill",
    small=(
        decompress_case("first-chunk", torch.float32, (40, 32, 24), MIXED, 50),
        decompress_case("last-chunk", torch.bfloat16, (48, 32, 17), MIXED, 50, 2),
        decompress_case("empty-chunk", torch.float16, (40, 40, 8), MIXED, 50, 3),
    ),
    served=(decompress_case("v2-lite", torch.bfloat16, KV_B, ((512, 3584),), 4096),),
    compiled=(decompress_case("bf16", torch.bfloat16, KV_B, MIXED, 64),),
)
PREFILL = Operation(
    name="flare_mla_prefill_ragged",
    package="flare_mla_prefill",
    small=(
        prefill_case("first-chunk", torch.float32, (2, 32, 16, 24), MIXED, 50),
        prefill_case("later-chunk", torch.float32, (2, 32, 16, 24), MIXED, 50, 1),
        prefill_case("rope-in-cache", torch.bfloat16, (2, 48, 16, 32), MIXED, 50, 2, True),
        prefill_case("no-keys", torch.float16, (1, 16, 8, 16), MIXED, 50, 4),
        prefill_case("deepseek-widths", torch.bfloat16, (1, 128, 64, 128), ((9, 60),), 80),
    ),
    served=(
        prefill_case("prefill-512", torch.bfloat16, DEEPSEEK, ((512, 0),), 512),
        prefill_case("prefill-512-ctx3584", torch.bfloat16, DEEPSEEK, ((512, 3584),), 4096),
    ),
    compiled=(
        prefill_case("bf16", torch.bfloat16, DEEPSEEK, MIXED, 64, 1),
        prefill_case("bf16-rope-in-cache", torch.bfloat16, DEEPSEEK, MIXED, 64, 0, True),
        prefill_case("fp32", torch.float32, (2, 64, 32, 64), MIXED, 64, 1),
    ),
)
OPERATIONS = (PLAN, DECOMPRESS, PREFILL)

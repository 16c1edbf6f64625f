"""Cases of `split_qkv_ragged`: odd heads, padded rows and fp8 caches in small, and served shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch
from quire.kernels.ragged_batch import RaggedBatch

STEP = ((1, 0), (1, 37), (5, 0), (7, 50))
"""(tokens, keys before) of the contexts of a mixed step."""


def empty_caches(
    num_pages: int, heads: tuple[int, int], page_size: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value caches for (K, D) filled with NaN, so that a slot that stays unwritten shows."""
    shape = (num_pages, heads[0], page_size, heads[1])
    k_cache = torch.full(shape, torch.nan, device=device).to(dtype)
    return k_cache, k_cache.clone()


def one_token_contexts(positions: torch.Tensor, slots: torch.Tensor) -> RaggedBatch:
    """A batch of tokens with a context each, for ops that read only positions and slots."""
    count = len(positions)
    return RaggedBatch(
        input_row_offsets=torch.arange(count + 1, dtype=torch.int32),
        cache_lengths=positions.clone(),
        lookup_table=torch.zeros(count, 1, dtype=torch.int32),
        positions=positions,
        slots=slots,
        query_lengths=(1,) * count,
        kv_lengths=tuple((positions + 1).tolist()),
        num_decode=count,
    )


def split_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lengths: tuple[tuple[int, int], ...] = STEP,
    page_size: int = 16,
    padding: int = 0,
    cache_dtype: torch.dtype | None = None,
) -> Case:
    """A case of `heads` (H, K, D); rows lie `padding` elements further apart than they are wide."""
    num_heads, kv_heads, head_dim = heads
    tokens = sum(new for new, _ in lengths)
    columns = (num_heads + 2 * kv_heads) * head_dim
    stored = cache_dtype or dtype

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, page_size, device, generator)
        wide = torch.randn(tokens, columns + padding, generator=generator).to(device, dtype)
        caches = empty_caches(num_pages, (kv_heads, head_dim), page_size, stored, device)
        return {
            "qkv": wide[:, :columns],
            "k_cache": caches[0],
            "v_cache": caches[1],
            "batch": batch,
            "num_heads": num_heads,
            "k_scale": 0.5 if stored != dtype else 1.0,
            "v_scale": 0.03 if stored != dtype else 1.0,
        }

    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=0.0,
        bytes_moved=tokens
        * (
            (columns + num_heads * head_dim) * dtype.itemsize
            + 2 * kv_heads * head_dim * stored.itemsize
        ),
        flops=0,
    )


FP8 = torch.float8_e4m3fn
SMALL_CASES = (
    split_case("fp32", torch.float32, (3, 2, 20)),
    split_case("bf16-padded-rows", torch.bfloat16, (14, 2, 64), padding=5),
    split_case("fp16-no-queries", torch.float16, (0, 3, 48), page_size=5),
    split_case("bf16-fp8-cache", torch.bfloat16, (4, 2, 32), cache_dtype=FP8),
    split_case("fp32-fp8-cache", torch.float32, (2, 1, 12), cache_dtype=FP8),
)
SERVED_CASES = tuple(
    split_case(
        f"{tokens}-tokens-{str(stored)[6:]}",
        torch.bfloat16,
        (32, 8, 128),
        ((1, 255),) * tokens if tokens <= 32 else ((tokens, 0),),
        page_size=32,
        cache_dtype=stored,
    )
    for tokens in (32, 512)
    for stored in (torch.bfloat16, FP8)
)
"""For the benchmark: a decode step and a prefill chunk of an 8B model."""
OPERATIONS = (
    Operation(
        name="split_qkv_ragged",
        package="split_qkv_ragged",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            split_case("bf16", torch.bfloat16, (32, 8, 128)),
            split_case("bf16-fp8-cache", torch.bfloat16, (32, 8, 128), cache_dtype=FP8),
            split_case("fp32-d80", torch.float32, (4, 4, 80)),
        ),
        mutates=("k_cache", "v_cache"),
    ),
)

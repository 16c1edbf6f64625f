"""Cases of `flash_attention_ragged`: small ones with every feature, and served shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch


def attention_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lengths: tuple[tuple[int, int], ...],
    page_size: int = 16,
    sliding_window: int | None = None,
) -> Case:
    """A case of `heads` (H, K, D) and `lengths`: (tokens of this step, keys before) per context.

    Memory that no token has written holds NaN, as stale pages may.
    """
    num_heads, kv_heads, head_dim = heads

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, page_size, device, generator)
        keys = torch.arange(batch.lookup_table.shape[1] * page_size)
        context, key = (keys < torch.tensor(batch.kv_lengths)[:, None]).nonzero(as_tuple=True)
        page = batch.lookup_table.cpu().long()[context, key // page_size]
        caches = []
        for _ in range(2):
            cache = torch.full((num_pages, kv_heads, page_size, head_dim), torch.nan, dtype=dtype)
            values = torch.randn(len(key), kv_heads, head_dim, generator=generator)
            cache[page, :, key % page_size] = values.to(dtype)
            caches.append(cache.to(device))
        q = torch.randn(sum(new), num_heads, head_dim, generator=generator).to(dtype)
        return {
            "q_THD": q.to(device),
            "k_cache": caches[0],
            "v_cache": caches[1],
            "batch": batch,
            "scale": head_dim**-0.5,
            "sliding_window": sliding_window,
        }

    tokens = sum(new for new, _ in lengths)
    keys_read = sum(new + min(old, (sliding_window or old) - 1) for new, old in lengths)
    pairs = sum(
        min(position + 1, sliding_window or position + 1)
        for new, old in lengths
        for position in range(old, old + new)
    )
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=2e-2 if dtype == torch.bfloat16 else 4e-6,
        bytes_moved=2 * head_dim * (tokens * num_heads + keys_read * kv_heads) * dtype.itemsize,
        flops=4 * head_dim * num_heads * pairs,
    )


MIXED = ((1, 0), (1, 37), (1, 600), (5, 0), (21, 50), (1, 90))
"""Decode and prefill rows; a context over one split of 512 keys; a last chunk of one token."""

SMALL_CASES = (
    attention_case("mixed-fp32", torch.float32, (4, 2, 32), MIXED),
    attention_case("mixed-bf16", torch.bfloat16, (4, 2, 64), MIXED, 32),
    attention_case("group-7", torch.float32, (7, 1, 64), MIXED, 128),
    attention_case("one-to-one", torch.float32, (2, 2, 16), MIXED),
    attention_case("multi-query-20", torch.bfloat16, (20, 1, 16), ((1, 30), (9, 20))),
    attention_case("window-16", torch.float32, (4, 2, 32), MIXED, 16, 16),
    attention_case("window-1", torch.float32, (2, 1, 32), ((1, 40), (20, 5)), 16, 1),
    attention_case("window-520", torch.bfloat16, (2, 1, 32), ((1, 1300), (18, 1020)), 64, 520),
    attention_case("head-dim-80", torch.bfloat16, (4, 2, 80), ((1, 70), (33, 31))),
    attention_case("head-dim-96", torch.bfloat16, (3, 1, 96), ((1, 70), (33, 31))),
    attention_case("head-dim-128", torch.bfloat16, (4, 1, 128), ((1, 70), (33, 31))),
    attention_case("head-dim-192", torch.bfloat16, (2, 1, 192), ((1, 70), (33, 31))),
    attention_case("head-dim-256", torch.float32, (2, 1, 256), ((1, 70), (33, 31))),
    attention_case(
        "decode-only", torch.float32, (4, 2, 32), ((1, 15), (1, 16), (1, 511), (1, 512))
    ),
    attention_case("prefill-only", torch.bfloat16, (4, 2, 32), ((2, 0), (17, 0), (40, 480))),
)


def _served(dtype: torch.dtype) -> tuple[Case, ...]:
    label = str(dtype).removeprefix("torch.")
    cases = []
    for heads in ((14, 2, 64), (9, 3, 64), (32, 8, 128)):
        shape = f"{label}-h{heads[0]}k{heads[1]}d{heads[2]}"
        for contexts in (8, 32):
            for keys in (256, 1024):
                lengths = ((1, keys - 1),) * contexts
                name = f"decode-b{contexts}-ctx{keys}-{shape}"
                cases.append(attention_case(name, dtype, heads, lengths, 32))
        for keys in (0, 1024):
            name = f"prefill-512-ctx{keys}-{shape}"
            cases.append(attention_case(name, dtype, heads, ((512, keys),), 32))
    return tuple(cases)


SERVED_CASES = _served(torch.bfloat16) + _served(torch.float32)
"""For the benchmark: steps of a 0.5B and a 135M model, and of an 8B model."""

CASES = SMALL_CASES + SERVED_CASES
STEP = ((1, 40), (1, 900), (30, 0))
OPERATIONS = (
    Operation(
        name="flash_attention_ragged",
        package="flash_attention_ragged",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            attention_case("bf16-d64", torch.bfloat16, (14, 2, 64), STEP, 32),
            attention_case("bf16-d128", torch.bfloat16, (32, 8, 128), STEP, 64),
            attention_case("bf16-d256-window", torch.bfloat16, (8, 1, 256), STEP, 128, 512),
            attention_case("fp32-d64", torch.float32, (9, 3, 64), STEP, 32),
        ),
    ),
)

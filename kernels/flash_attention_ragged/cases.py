"""Cases of `flash_attention_ragged`: small ones with every feature, and served shapes."""

from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from quire.kernels.cases import Case, Operation, random_ragged_batch
from quire.kernels.ragged_batch import RaggedBatch


def attention_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lengths: tuple[tuple[int, int], ...],
    page_size: int = 16,
    sliding_window: int | None = None,
    *,
    fp8: bool = False,
    sinks: bool = False,
    **options: Any,
) -> Case:
    """A case of `heads` (H, K, D) and `lengths`: (tokens of this step, keys before) per context.

    Memory that no token has written holds NaN, as stale pages may. `fp8` stores the cache so;
    `options` are further arguments of the op.
    """
    num_heads, kv_heads, head_dim = heads
    cache_dtype = torch.float8_e4m3fn if fp8 else dtype

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, page_size, device, generator)
        shape = (num_pages, kv_heads, page_size, head_dim)
        k_cache, v_cache = (_filled_cache(shape, dtype, batch, generator) for _ in range(2))
        q = torch.randn(sum(new), num_heads, head_dim, generator=generator).to(dtype)
        inputs = {
            "q_THD": q.to(device),
            "k_cache": k_cache.to(device, cache_dtype),
            "v_cache": v_cache.to(device, cache_dtype),
            "batch": batch,
            "scale": head_dim**-0.5,
            "sliding_window": sliding_window,
        }
        if sinks:
            inputs["sinks"] = torch.randn(num_heads, generator=generator).to(device)
        return inputs | options

    tokens = sum(new for new, _ in lengths)
    keys_read = sum(new + min(old, (sliding_window or old) - 1) for new, old in lengths)
    pairs = sum(
        min(position + 1, sliding_window or position + 1)
        for new, old in lengths
        for position in range(old, old + new)
    )
    cached = keys_read * kv_heads * cache_dtype.itemsize
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=2e-2 if dtype == torch.bfloat16 else 4e-6,
        bytes_moved=2 * head_dim * (tokens * num_heads * dtype.itemsize + cached),
        flops=4 * head_dim * num_heads * pairs,
    )


def _filled_cache(
    shape: tuple[int, ...], dtype: torch.dtype, batch: RaggedBatch, generator: torch.Generator
) -> torch.Tensor:
    """A cache with random rows for the keys of the batch, and NaN elsewhere."""
    _, kv_heads, page_size, head_dim = shape
    keys = torch.arange(max(batch.kv_lengths))
    context, key = (keys < torch.tensor(batch.kv_lengths)[:, None]).nonzero(as_tuple=True)
    page = batch.lookup_table.cpu().long()[context, key // page_size]
    cache = torch.full(shape, torch.nan, dtype=dtype)
    values = torch.randn(len(key), kv_heads, head_dim, generator=generator)
    cache[page, :, key % page_size] = values.to(dtype)
    return cache


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
    attention_case("scale-1", torch.float32, (4, 2, 32), MIXED, scale=1.0),
    attention_case("cap-fp32", torch.float32, (4, 2, 32), MIXED, soft_cap=2.0),
    attention_case("cap-bf16-window", torch.bfloat16, (4, 2, 64), MIXED, 16, 30, soft_cap=30.0),
    attention_case("sinks-fp32", torch.float32, (4, 2, 32), MIXED, sinks=True),
    attention_case("sinks-bf16-window", torch.bfloat16, (16, 2, 64), MIXED, 32, 128, sinks=True),
    attention_case("fp8-fp32", torch.float32, (4, 2, 32), MIXED, fp8=True, k_scale=0.5),
    attention_case(
        "fp8-bf16", torch.bfloat16, (4, 1, 96), MIXED, 64, fp8=True, k_scale=2.0, v_scale=0.25
    ),
)

EIGHT_B = (32, 8, 128)
"""Query heads, key heads and head_dim of an 8B model."""


def _served(dtype: torch.dtype) -> tuple[Case, ...]:
    label = str(dtype).removeprefix("torch.")
    cases = []
    for heads in ((14, 2, 64), (9, 3, 64), EIGHT_B):
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


def _served_8b(name: str, lengths: tuple[tuple[int, int], ...], fp8: bool = False) -> Case:
    return attention_case(f"{name}-h32k8d128", torch.bfloat16, EIGHT_B, lengths, 32, fp8=fp8)


ONE_LONG = ((1, 32767),) + ((1, 511),) * 63
UNIFORM = ((1, 1015),) * 64
SERVED_CASES = (
    *_served(torch.bfloat16),
    *_served(torch.float32),
    _served_8b("decode-b32-ctx1024-fp8", ((1, 1023),) * 32, fp8=True),
    _served_8b("decode-1x32768-63x512", ONE_LONG),
    _served_8b("decode-64x1016", UNIFORM),
    _served_8b("prefill-4096-ctx0", ((4096, 0),)),
)
"""For the benchmark: steps of a 0.5B and a 135M model, and of an 8B model. The two decode steps of
64 contexts have equally many keys, so they should cost the same."""


@lru_cache(maxsize=2)
def _dense(cache: torch.Tensor, batch: RaggedBatch, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Keys or values [n, K, L, D] of each run of contexts of one shape, gathered from pages."""
    dense, context = [], 0
    for (_, length), run in groupby(zip(batch.query_lengths, batch.kv_lengths, strict=True)):
        count = len(list(run))
        pages = batch.lookup_table[context : context + count].long()
        pages = pages[:, : -(-length // cache.shape[2])]
        gathered = cache[pages].to(dtype).transpose(1, 2).flatten(2, 3)
        dense.append(gathered[:, :, :length].contiguous())
        context += count
    return tuple(dense)


def scaled_dot_product(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Torch's attention on dense keys and values of each run of contexts of one shape.

    They are gathered on the first call for a batch only: the time of later calls is attention's.
    """
    keys = _dense(k_cache, batch, q_THD.dtype)
    values = _dense(v_cache, batch, q_THD.dtype)
    runs = groupby(zip(batch.query_lengths, batch.kv_lengths, strict=True))
    out_THD, token = torch.empty_like(q_THD), 0
    for ((count, length), _), k, v in zip(runs, keys, values, strict=True):
        rows = slice(token, token + len(k) * count)
        q = q_THD[rows].view(len(k), count, *q_THD.shape[1:]).transpose(1, 2)
        mask: torch.Tensor | None = None
        if sliding_window is not None:
            distance = torch.arange(length - count, length)[:, None] - torch.arange(length)
            mask = ((distance >= 0) & (distance < sliding_window)).to(q.device)
        elif 1 < count < length:
            mask = causal_lower_right(count, length)
        is_causal = mask is None and count > 1
        out = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=True
        )
        out_THD[rows] = out.transpose(1, 2).flatten(0, 1)
        token = rows.stop
    return out_THD


def plan_case(cache_lengths: tuple[int, ...], sliding_window: int | None = None) -> Case:
    """A step of decode contexts with these lengths, and one of prefill."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new = (*(1,) * len(cache_lengths), 7)
        old = (*cache_lengths, 600)
        batch, _ = random_ragged_batch(new, old, 16, device, generator)
        return {"batch": batch, "sliding_window": sliding_window}

    return Case(
        name=f"{len(cache_lengths)}-contexts-window-{sliding_window}",
        dtype=torch.int32,
        build=build,
        tolerance=0.0,
        bytes_moved=8 * len(cache_lengths),
        flops=0,
    )


EDGE_LENGTHS = (0, 511, 512, 513, 5, 1023, 1024, 2000, 1535)
PLAN_SMALL = (
    plan_case(()),
    plan_case((700,)),
    plan_case(EDGE_LENGTHS),
    *(plan_case(EDGE_LENGTHS, window) for window in (1, 2, 512, 513, 514, 1000)),
    plan_case(tuple(range(0, 2100, 2))),
)

CASES = SMALL_CASES + SERVED_CASES
STEP = ((1, 40), (1, 900), (30, 0))
COMPILED_CASES = (
    attention_case("bf16-d64", torch.bfloat16, (14, 2, 64), STEP, 32),
    attention_case("bf16-d128", torch.bfloat16, EIGHT_B, STEP, 64),
    attention_case("bf16-d128-fp8", torch.bfloat16, EIGHT_B, STEP, 64, fp8=True),
    attention_case(
        "bf16-d256-cap-window", torch.bfloat16, (16, 8, 256), STEP, 128, 4096, soft_cap=50.0
    ),
    attention_case("bf16-d64-sinks-window", torch.bfloat16, (64, 8, 64), STEP, 64, 128, sinks=True),
    attention_case("fp32-d64", torch.float32, (9, 3, 64), STEP, 32),
)
"""Shapes of models of 0.5B (Qwen2), 8B (Llama 3), 9B (Gemma 2), 20B (gpt-oss) and 135M (SmolLM)."""

OPERATIONS = (
    Operation(
        name="flash_attention_ragged",
        package="flash_attention_ragged",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=COMPILED_CASES,
        peers={"F.scaled_dot_product_attention": scaled_dot_product},
    ),
    Operation(
        name="plan_decode",
        package="flash_attention_ragged",
        small=PLAN_SMALL,
        served=(plan_case((1023,) * 64),),
        compiled=(plan_case((40, 900)), plan_case((40, 900), 512)),
    ),
)

"""Cases of `cross_attention_ragged`: small ones with every feature, and encoder-decoder shapes."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch
from quire.kernels.flash_attention_gpu.cases import TOLERANCE


def cross_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lengths: tuple[tuple[int, int], ...],
    page_size: int = 16,
    window: int = -1,
) -> Case:
    """A case of `heads` (H, K, D) and `lengths`: (tokens, keys of the other sequence) per context.

    Memory past the keys holds NaN, as stale pages may.
    """
    num_heads, kv_heads, head_dim = heads
    counts, kv = zip(*lengths, strict=True)

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        # The pages of contexts whose last token has all keys of the other sequence before it.
        batch, num_pages = random_ragged_batch(
            [1] * len(kv), [max(n - 1, 0) for n in kv], page_size, device, generator
        )
        lookup_table = batch.lookup_table.cpu().long()
        keys = torch.arange(lookup_table.shape[1] * page_size)
        context, key = (keys < torch.tensor(kv)[:, None]).nonzero(as_tuple=True)
        page = lookup_table[context, key // page_size]
        caches = []
        for _ in range(2):
            cache = torch.full((num_pages, kv_heads, page_size, head_dim), torch.nan, dtype=dtype)
            values = torch.randn(len(key), kv_heads, head_dim, generator=generator)
            cache[page, :, key % page_size] = values.to(dtype)
            caches.append(cache.to(device))
        q = torch.randn(sum(counts), num_heads, head_dim, generator=generator).to(dtype)
        offsets = torch.tensor([0, *counts]).cumsum(0)
        positions = torch.randint(0, max(kv) + 1, (sum(counts),), generator=generator)
        return {
            "q_THD": q.to(device),
            "k_cache": caches[0],
            "v_cache": caches[1],
            "input_row_offsets": offsets.to(device, torch.int32),
            "kv_lengths": torch.tensor(kv, dtype=torch.int32, device=device),
            "lookup_table": batch.lookup_table,
            "scale": head_dim**-0.5,
            "local_window_size": window,
            "positions": positions.to(device, torch.int32) if window > 0 else None,
        }

    rows, keys_read = 2 * sum(counts) * num_heads, 2 * sum(kv) * kv_heads
    pairs = sum(tokens * keys for tokens, keys in lengths)
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=TOLERANCE[dtype],
        bytes_moved=head_dim * (rows + keys_read) * dtype.itemsize,
        flops=4 * head_dim * num_heads * pairs,
    )


MIXED = ((1, 40), (5, 0), (0, 30), (70, 3), (3, 129))
"""One token and more tokens than a tile; no keys, no tokens, more keys than a block."""

SMALL_CASES = (
    cross_case("mixed-fp32", torch.float32, (4, 2, 32), MIXED),
    cross_case("mixed-bf16", torch.bfloat16, (4, 2, 64), MIXED, 32),
    cross_case("group-3-fp16", torch.float16, (3, 1, 80), ((30, 50), (2, 17))),
    cross_case("window-8", torch.float32, (2, 1, 16), MIXED, 16, 8),
    cross_case("window-1", torch.bfloat16, (2, 2, 24), ((9, 70), (4, 5)), 16, 1),
)
SERVED_CASES = (
    cross_case("whisper-decode-b8", torch.float16, (20, 20, 64), ((1, 1500),) * 8, 64),
    cross_case("whisper-prefill-b8", torch.float16, (20, 20, 64), ((64, 1500),) * 8, 64),
    cross_case("mllama-decode-b8", torch.bfloat16, (32, 8, 128), ((1, 6404),) * 8, 64),
    cross_case("mllama-prefill", torch.bfloat16, (32, 8, 128), ((512, 6404),), 64),
)
OPERATIONS = (
    Operation(
        name="cross_attention_ragged",
        package="cross_attention_ragged",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            cross_case("fp16-d64", torch.float16, (4, 4, 64), MIXED, 64),
            cross_case("bf16-d128-window", torch.bfloat16, (8, 2, 128), MIXED, 64, 16),
            cross_case("fp32-d64", torch.float32, (4, 2, 64), MIXED, 64),
        ),
    ),
)

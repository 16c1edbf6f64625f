"""Pages and buffer rows may lie more than 2^31 elements from the start of their tensor."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import GridExecutor

from quire.kernels.cases import random_ragged_batch
from quire.kernels.cross_attention_ragged.kernel import cross_attention_ragged_triton
from quire.kernels.flare_mla_decode_ragged.kernel import flare_mla_decode_ragged_triton
from quire.kernels.flare_mla_prefill.kernel import (
    flare_mla_decompress_k_cache_triton,
    flare_mla_prefill_plan_triton,
    flare_mla_prefill_ragged_triton,
)
from quire.kernels.ragged_batch import RaggedBatch

CPU = torch.device("cpu")
WIDTH, ROPE, PAGE_SIZE, BUFFER = 24, 8, 16, 40


@pytest.fixture(autouse=True)
def memory_never_touched_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter copies whole arguments back, onto themselves when they are on the CPU."""
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)


def decode(batch: RaggedBatch, cache: torch.Tensor, q: torch.Tensor) -> Any:
    return flare_mla_decode_ragged_triton(q, cache, batch, scale=0.3, qk_rope_dim=ROPE)


def decompress(batch: RaggedBatch, cache: torch.Tensor, q: torch.Tensor) -> Any:
    rows, firsts, lengths = flare_mla_prefill_plan_triton(batch, BUFFER, 1)
    weight = q[:, 0, : WIDTH - ROPE].contiguous()
    return flare_mla_decompress_k_cache_triton(
        cache, batch.lookup_table, rows[0], firsts[0], lengths, weight, BUFFER
    )


def prefill(batch: RaggedBatch, cache: torch.Tensor, q: torch.Tensor) -> Any:
    rows, firsts, _ = flare_mla_prefill_plan_triton(batch, BUFFER, 1)
    k = torch.randn(BUFFER, 2, WIDTH - ROPE, generator=torch.Generator().manual_seed(2)).half()
    out, _ = flare_mla_prefill_ragged_triton(
        q, k, k, batch, rows[0], firsts[0], scale=0.3, latent_cache=cache, qk_rope_dim=ROPE
    )
    return out


def prefill_of_rows_far_apart(batch: RaggedBatch, cache: torch.Tensor, q: torch.Tensor) -> Any:
    rows, firsts, _ = flare_mla_prefill_plan_triton(batch, BUFFER, 1)
    k = torch.randn(BUFFER, 2, WIDTH, generator=torch.Generator().manual_seed(2)).half()
    apart = cache.numel() // BUFFER
    if apart > k[0].numel():
        row_starts = cache.view(-1)[: apart * BUFFER].view(BUFFER, apart)
        k = row_starts[:, : k[0].numel()].unflatten(1, (2, WIDTH)).copy_(k)
    return flare_mla_prefill_ragged_triton(q, k, k, batch, rows[0], firsts[0], scale=0.3)[0]


def cross(batch: RaggedBatch, cache: torch.Tensor, q: torch.Tensor) -> Any:
    lengths = torch.tensor(batch.kv_lengths, dtype=torch.int32)
    one_head = cache[:, None]
    return cross_attention_ragged_triton(
        q, one_head, one_head, batch.input_row_offsets, lengths, batch.lookup_table, scale=0.3
    )


@pytest.mark.parametrize("attend", [decode, decompress, prefill, prefill_of_rows_far_apart, cross])
def test_far_memory_gives_the_same(attend: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    batch, num_pages = random_ragged_batch([1, 3], [20, 9], PAGE_SIZE, CPU, generator)
    near = torch.randn(num_pages, PAGE_SIZE, WIDTH, generator=generator).half()
    q = torch.randn(4, 2, WIDTH, generator=generator).half()
    # Zero pages of the system: only what is written takes memory.
    far_pages = 2**31 // (PAGE_SIZE * WIDTH) + 2 * num_pages
    far = torch.from_numpy(np.zeros((far_pages, PAGE_SIZE, WIDTH), np.float16))
    far[-num_pages - 1 : -1] = near
    lookup_table = batch.lookup_table + (far_pages - num_pages - 1)
    far_batch = dataclasses.replace(batch, lookup_table=lookup_table)

    result = attend(far_batch, far, q)

    assert torch.equal(result, attend(batch, near, q))
    assert result.abs().sum() > 1

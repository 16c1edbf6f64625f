"""Llama 4's chunked attention: batches derived for it, and bits that depend on history alone."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from parity.moe_models import spread_mixture
from parity.random_models import SIZES, randomize

from quire.config.errors import ConfigError
from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.nn.chunked_batch import chunked_batch


def batch_of(*contexts: tuple[int, int]) -> RaggedBatch:
    """Of (tokens, keys with them) of each context; page p of context c is 100 c + p."""
    counts, lengths = zip(*contexts, strict=True)
    starts = [length - count for count, length in contexts]
    positions = [
        p for start, length in zip(starts, lengths, strict=True) for p in range(start, length)
    ]
    table = [[100 * context + page for page in range(8)] for context in range(len(contexts))]
    return RaggedBatch(
        input_row_offsets=torch.tensor([0, *counts]).cumsum(0).int(),
        cache_lengths=torch.tensor(starts).int(),
        lookup_table=torch.tensor(table).int(),
        positions=torch.tensor(positions).int(),
        slots=torch.tensor(positions),
        query_lengths=counts,
        kv_lengths=lengths,
        num_decode=sum(count == 1 for count in counts),
    )


def test_a_context_becomes_one_for_each_chunk_it_touches() -> None:
    batch = batch_of((1, 33), (1, 5), (50, 70))

    found = chunked_batch(batch, chunk_size=32, page_size=16)

    assert found.query_lengths == (1, 1, 12, 32, 6)
    assert found.kv_lengths == (1, 5, 32, 32, 6)
    assert found.cache_lengths.tolist() == [0, 4, 20, 0, 0]
    assert found.input_row_offsets.tolist() == [0, 1, 2, 14, 46, 52]
    assert found.lookup_table.tolist() == [[2, 3], [100, 101], [200, 201], [202, 203], [204, 205]]
    assert found.num_decode == 2
    assert torch.equal(found.positions, batch.positions)


def test_contexts_within_one_chunk_stay_as_they_are() -> None:
    batch = batch_of((1, 32), (20, 20))

    assert chunked_batch(batch, chunk_size=32, page_size=16) is batch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_are_equal_for_any_cut_and_batch(
    dtype: str, load: Callable[..., Any], drive: Callable[..., Any]
) -> None:
    loaded = load(llama4(attention_chunk_size=32), dtype=dtype)
    rng = random.Random(5)
    history, other = (rng.choices(range(211), k=count) for count in (75, 90))
    (expected,) = drive(loaded).logits([history], [[(0, 75)]])

    for steps in (
        [[(1, 3)], *[[(0, 1)]] * 75],
        [[(0, 31)], [(1, 90)], [(0, 2)], [(0, 42)]],
        [[(0, 32), (1, 50)], [(0, 32), (1, 1)], [(0, 1), (1, 30)], *[[(0, 1)]] * 10],
    ):
        logits = drive(loaded, seed=len(steps)).logits([history, other], steps)[0]
        assert torch.equal(logits, expected)


def test_pages_that_chunks_do_not_begin_with_are_refused(load: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="page_size: expected a divisor of .* 24, found 16"):
        load(llama4(attention_chunk_size=24))


def llama4(**fields: Any) -> transformers.PreTrainedModel:
    config = transformers.Llama4TextConfig(
        **{
            **SIZES,
            "num_local_experts": 4,
            "no_rope_layers": [1, 0, 1],
            "floor_scale": 16,
            **fields,
        }
    )
    return spread_mixture(randomize("Llama4ForCausalLM", config))

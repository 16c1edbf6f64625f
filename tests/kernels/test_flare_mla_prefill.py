"""Latent prefill: the plan covers every key once, and chained chunks equal attention at once."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from quire.kernels.cases import random_ragged_batch
from quire.kernels.flare_mla_prefill import (
    flare_mla_decompress_k_cache,
    flare_mla_prefill_plan,
    flare_mla_prefill_ragged,
)
from quire.kernels.flare_mla_prefill.cases import MIXED, decompress_case, prefill_case
from quire.kernels.flare_mla_prefill.kernel import (
    flare_mla_decompress_k_cache_triton,
    flare_mla_prefill_plan_triton,
    flare_mla_prefill_ragged_triton,
)

CPU = torch.device("cpu")
PLANS = [
    pytest.param(flare_mla_prefill_plan, id="cpu"),
    pytest.param(flare_mla_prefill_plan_triton, id="triton"),
]
DECOMPRESSIONS = [
    pytest.param(flare_mla_decompress_k_cache, id="cpu"),
    pytest.param(flare_mla_decompress_k_cache_triton, id="triton"),
]
PREFILLS = [
    pytest.param(flare_mla_prefill_ragged, id="cpu"),
    pytest.param(flare_mla_prefill_ragged_triton, id="triton"),
]


@pytest.mark.parametrize("plan", PLANS)
def test_every_key_is_in_one_chunk_in_order(plan: Callable[..., Any]) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        new = sorted(rng.choice((1, 1, rng.randrange(1, 40))) for _ in range(rng.randrange(1, 9)))
        old = [rng.choice((0, rng.randrange(60))) for _ in new]
        batch, _ = random_ragged_batch(new, old, 16, CPU, torch.Generator().manual_seed(seed))
        total = sum(batch.kv_lengths)
        buffer_size = rng.randrange(1, total + 10)
        chunks = -(-total // buffer_size) + rng.randrange(3)

        rows, firsts, lengths = plan(batch, buffer_size, chunks)

        assert rows.shape == (chunks, len(new) + 1)
        assert firsts.shape == (chunks, len(new))
        assert {rows.dtype, firsts.dtype, lengths.dtype} == {torch.int32}
        found: list[tuple[int, int]] = []
        for chunk in range(chunks):
            assert rows[chunk, 0] == 0
            assert rows[chunk, -1] == lengths[chunk] <= buffer_size
            for context, count in enumerate(rows[chunk].diff().tolist()):
                first = int(firsts[chunk, context])
                found += [(context, key) for key in range(first, first + count)]
        expected = [
            (context, key) for context, keys in enumerate(batch.kv_lengths) for key in range(keys)
        ]
        assert found == expected, seed
        full = total // buffer_size
        assert lengths[:full].eq(buffer_size).all()


def test_a_plan_with_too_few_chunks_is_refused() -> None:
    batch, _ = random_ragged_batch([1, 5], [9, 30], 16, CPU, torch.Generator())
    flare_mla_prefill_plan(batch, 9, 5)
    with pytest.raises(ValueError, match="max_chunks must be at least 5 for 45 keys .* 9, got 4"):
        flare_mla_prefill_plan(batch, 9, 4)
    with pytest.raises(ValueError, match="max_chunks must be at least 45 .*, got 16"):
        flare_mla_prefill_plan(batch, 1)
    with pytest.raises(ValueError, match="buffer_size must be from 1 to .*, got 0"):
        flare_mla_prefill_plan(batch, 0)
    with pytest.raises(ValueError, match="max_chunks must be from 1 to .*, got 0"):
        flare_mla_prefill_plan(batch, 100, 0)


@pytest.mark.parametrize("decompress", DECOMPRESSIONS)
def test_rows_are_latents_in_order_and_then_zeros(decompress: Callable[..., Any]) -> None:
    """Seen through the identity as weight; contexts without keys in the chunk have no rows."""
    for chunk in range(3):
        case = decompress_case(
            "", torch.float32, (24, 16, 16), ((1, 20), (5, 0), (40, 30)), 40, chunk
        )
        inputs = case.build(CPU, torch.Generator().manual_seed(1))
        inputs["weight"] = torch.eye(16)
        out = decompress(**inputs)

        row = 0
        for context, count in enumerate(inputs["buffer_row_offsets_1d"].diff().tolist()):
            first = int(inputs["cache_offsets_1d"][context])
            for key in range(first, first + count):
                page = inputs["lookup_table"][context, key // 16]
                assert torch.equal(out[row], inputs["latent_cache"][page, key % 16, :16])
                row += 1
        assert row == int(inputs["buffer_length"])
        assert torch.equal(out[row:], torch.zeros(40 - row, 16))


@pytest.mark.parametrize("decompress", DECOMPRESSIONS)
def test_decompression_is_near_float64(decompress: Callable[..., Any]) -> None:
    inputs = decompress_case("", torch.float32, (40, 32, 24), MIXED, 50).build(
        CPU, torch.Generator().manual_seed(2)
    )
    latents = decompress(**{**inputs, "weight": torch.eye(32)}).double()

    out = decompress(**inputs)

    expected = F.linear(latents, inputs["weight"].double())
    torch.testing.assert_close(out.double(), expected, atol=4e-6, rtol=0)


@pytest.mark.parametrize("attend", PREFILLS)
@pytest.mark.parametrize(("buffer_size", "order"), [(33, 1), (64, -1), (200, 1)])
def test_chained_chunks_equal_attention_at_once(
    attend: Callable[..., Any], buffer_size: int, order: int
) -> None:
    """torch's attention in float64; chunks may come in any order."""
    generator = torch.Generator().manual_seed(3)
    new, old = (1, 4, 66), (40, 0, 5)
    heads, head_dim, value_dim = 2, 24, 16
    batch, _ = random_ragged_batch(new, old, 16, CPU, generator)
    total = sum(batch.kv_lengths)
    q = torch.randn(sum(new), heads, head_dim, generator=generator)
    k = torch.randn(total, heads, head_dim, generator=generator)
    v = torch.randn(total, heads, value_dim, generator=generator)
    rows, firsts, lengths = flare_mla_prefill_plan(batch, buffer_size)
    needed = -(-total // buffer_size)

    out = info = None
    for chunk in list(range(needed))[::order]:
        begin, count = chunk * buffer_size, int(lengths[chunk])
        buffers = []
        for whole in (k, v):
            buffer = torch.full((buffer_size, heads, whole.shape[2]), torch.nan)
            buffer[:count] = whole[begin : begin + count]
            buffers.append(buffer)
        out, info = attend(
            q, *buffers, batch, rows[chunk], firsts[chunk],
            scale=0.2, prev_output=out, prev_softmax_info=info,
        )  # fmt: skip

    expected, start = [], 0
    for own_q, count, length in zip(q.split(new), new, batch.kv_lengths, strict=True):
        own = slice(start, start + length)
        one = F.scaled_dot_product_attention(
            *(x.double().transpose(0, 1) for x in (own_q, k[own], v[own])),
            attn_mask=torch.ones(count, length, dtype=torch.bool).tril(length - count),
            scale=0.2,
        )
        expected.append(one.transpose(0, 1))
        start += length
    torch.testing.assert_close(out.double(), torch.cat(expected), atol=4e-6, rtol=0)
    assert info.dtype == torch.float32
    assert info.shape == (sum(new), heads, 2)


@pytest.mark.parametrize("attend", PREFILLS)
def test_softmax_info_is_the_logsumexp(attend: Callable[..., Any]) -> None:
    case = prefill_case("", torch.float32, (2, 16, 8, 16), ((3, 0), (4, 9)), 20)
    inputs = case.build(CPU, torch.Generator().manual_seed(4))

    _, info = attend(**inputs)

    top, total = info.double().unbind(-1)
    keys = inputs["k"][3:16].double()
    q = inputs["q"][3:].double()
    scores = torch.einsum("qhd,khd->qhk", q, keys) * inputs["scale"]
    hidden = torch.arange(9, 13)[:, None, None] < torch.arange(13)
    expected = scores.masked_fill(hidden, float("-inf")).logsumexp(-1)
    actual = top[3:] * torch.log(torch.tensor(2.0)) + total[3:].log()
    torch.testing.assert_close(actual, expected, atol=4e-6, rtol=0)


@pytest.mark.parametrize("attend", PREFILLS)
def test_a_token_without_keys_so_far_is_zero(attend: Callable[..., Any]) -> None:
    """And a chunk without keys changes nothing but the dtype."""
    inputs = prefill_case("", torch.float32, (1, 16, 8, 16), ((1, 5), (3, 60)), 40).build(
        CPU, torch.Generator().manual_seed(5)
    )
    empty = {
        "buffer_row_offsets": torch.zeros(3, dtype=torch.int32),
        "cache_offsets": torch.tensor([6, 63], dtype=torch.int32),
    }
    out, info = attend(**{**inputs, **empty})
    assert torch.equal(out, torch.zeros(4, 1, 16))
    assert torch.equal(info, torch.tensor([float("-inf"), 0.0]).expand(4, 1, 2))

    out, info = attend(**inputs)
    previous = {"prev_output": out, "prev_softmax_info": info, "output_dtype": torch.bfloat16}
    later, later_info = attend(**{**inputs, **empty, **previous})
    torch.testing.assert_close(later.float(), out, atol=0, rtol=2**-8)
    assert later.dtype == torch.bfloat16
    assert torch.equal(later_info, info)


def test_wrong_inputs_of_the_decompression_are_named() -> None:
    inputs = decompress_case("", torch.float32, (24, 16, 8), ((1, 3), (2, 5)), 20).build(
        CPU, torch.Generator().manual_seed(1)
    )

    def decompress(**changed: Any) -> None:
        flare_mla_decompress_k_cache(**{**inputs, **changed})

    with pytest.raises(ValueError, match=r"latent_cache must be \[P, page_size, W\], got"):
        decompress(latent_cache=inputs["latent_cache"][0])
    with pytest.raises(ValueError, match="latent_cache must be of bfloat16 or .*, got float64"):
        decompress(latent_cache=inputs["latent_cache"].double())
    with pytest.raises(ValueError, match=r"buffer_row_offsets_1d must be \[3\], got \[2\]"):
        decompress(buffer_row_offsets_1d=inputs["buffer_row_offsets_1d"][:2])
    with pytest.raises(ValueError, match=r"cache_offsets_1d must be \[2\], got \[1\]"):
        decompress(cache_offsets_1d=inputs["cache_offsets_1d"][:1])
    with pytest.raises(ValueError, match=r"buffer_length must be \[1\], got \[\]"):
        decompress(buffer_length=inputs["buffer_length"][0])
    with pytest.raises(ValueError, match="weight must be of float32, got bfloat16"):
        decompress(weight=inputs["weight"].bfloat16())
    with pytest.raises(ValueError, match="columns of weight must be from 1 to 24, got 25"):
        decompress(weight=torch.ones(8, 25))
    with pytest.raises(ValueError, match="buffer_size must be from 1 to .*, got 0"):
        decompress(buffer_size=0)
    with pytest.raises(ValueError, match="rows of lookup_table must be from 1 to .*, got 0"):
        decompress(
            lookup_table=torch.zeros(0, 1, dtype=torch.int32),
            buffer_row_offsets_1d=torch.zeros(1, dtype=torch.int32),
            cache_offsets_1d=torch.zeros(0, dtype=torch.int32),
        )


def test_wrong_inputs_of_the_prefill_are_named() -> None:
    inputs = prefill_case("", torch.float32, (2, 16, 8, 24), ((1, 3), (2, 5)), 20, 0, True).build(
        CPU, torch.Generator().manual_seed(1)
    )
    q, v = inputs["q"], inputs["v"]

    def attend(**changed: Any) -> None:
        flare_mla_prefill_ragged(**{**inputs, **changed})

    with pytest.raises(ValueError, match=r"q must be \[T, H, D\], got \[3, 2\]"):
        attend(q=q[..., 0])
    with pytest.raises(ValueError, match="head_dim of q must be a multiple of 8 .*, got 12"):
        attend(q=q[..., :12].contiguous())
    with pytest.raises(ValueError, match=r"k must be \[rows, 2, 16\], got \[20, 2, 24\]"):
        attend(k=v)
    with pytest.raises(ValueError, match=r"k must be \[rows, 2, 24\], got \[20, 2, 16\]"):
        attend(latent_cache=None)
    with pytest.raises(ValueError, match=r"v must be \[20, 2, V\], got \[19, 2, 24\]"):
        attend(v=v[:19])
    with pytest.raises(ValueError, match="v must be of float32, got float16"):
        attend(v=v.half())
    with pytest.raises(ValueError, match="head_dim of v must be a multiple of 8 .*, got 20"):
        attend(v=v[..., :20])
    with pytest.raises(ValueError, match=r"k must have last stride 1, got \[2, 1, 40\]"):
        attend(k=torch.ones(16, 20, 2).permute(1, 2, 0))
    with pytest.raises(
        ValueError, match="qk_rope_dim must be a multiple of 8 from 8 to 16, got 64"
    ):
        attend(qk_rope_dim=64)
    with pytest.raises(ValueError, match="q must have a row for each of the batch's 3 tokens"):
        attend(q=q[:2])
    with pytest.raises(ValueError, match=r"buffer_row_offsets must be \[3\], got \[2\]"):
        attend(buffer_row_offsets=inputs["buffer_row_offsets"][:2])
    with pytest.raises(ValueError, match=r"cache_offsets must be \[2\], got \[1\]"):
        attend(cache_offsets=inputs["cache_offsets"][:1])
    with pytest.raises(
        ValueError, match="prev_output and prev_softmax_info must be given together"
    ):
        attend(prev_output=torch.ones(3, 2, 24))
    with pytest.raises(ValueError, match=r"prev_output must be \[3, 2, 24\], got \[3, 2, 16\]"):
        attend(prev_output=torch.ones(3, 2, 16), prev_softmax_info=torch.ones(3, 2, 2))
    with pytest.raises(ValueError, match=r"prev_softmax_info must be \[3, 2, 2\], got"):
        attend(prev_output=torch.ones(3, 2, 24), prev_softmax_info=torch.ones(3, 2))
    with pytest.raises(ValueError, match="output_dtype must be one of .*, got torch.float64"):
        attend(output_dtype=torch.float64)

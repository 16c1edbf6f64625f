"""Cross attention: equal to torch's own in float64, and exact per token."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from quire.kernels.cases import Case
from quire.kernels.cross_attention_ragged import cross_attention_ragged
from quire.kernels.cross_attention_ragged.cases import MIXED, SMALL_CASES, cross_case
from quire.kernels.cross_attention_ragged.kernel import cross_attention_ragged_triton

CPU = torch.device("cpu")
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Attention = Callable[..., torch.Tensor]
PATHS = [
    pytest.param(cross_attention_ragged, id="cpu"),
    pytest.param(cross_attention_ragged_triton, id="triton"),
]


def sdpa(inputs: dict[str, Any]) -> torch.Tensor:
    """torch's attention in float64 over keys gathered one by one."""
    out = torch.zeros_like(inputs["q_THD"], dtype=torch.float64)
    window, page_size = inputs["local_window_size"], inputs["k_cache"].shape[2]
    for context, (start, end) in enumerate(pairwise(inputs["input_row_offsets"].tolist())):
        length = int(inputs["kv_lengths"][context])
        if not length:
            continue
        k, v = (
            torch.stack(
                [
                    cache[inputs["lookup_table"][context, key // page_size], :, key % page_size]
                    for key in range(length)
                ],
                1,
            ).double()
            for cache in (inputs["k_cache"], inputs["v_cache"])
        )
        visible = torch.ones(end - start, length, dtype=torch.bool)
        if window > 0:
            position = inputs["positions"][start:end, None]
            visible = (position - torch.arange(length)).abs() < window
        q = inputs["q_THD"][start:end].double().transpose(0, 1)
        result = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=visible, scale=inputs["scale"], enable_gqa=True
        )
        out[start:end] = result[0].nan_to_num(0.0).transpose(0, 1)
    return out


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_equals_torch_in_float64(case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(2))

    out = cross_attention_ragged(**inputs)

    assert out.dtype == case.dtype
    torch.testing.assert_close(out.double(), sdpa(inputs), atol=case.tolerance, rtol=0)


def only(inputs: dict[str, Any], context: int, tokens: slice) -> tuple[dict[str, Any], slice]:
    """The same step with some tokens of one context alone, and where they were."""
    start, end = inputs["input_row_offsets"][context : context + 2].tolist()
    where = slice(*(start + i for i in tokens.indices(end - start)[:2]))
    one = slice(context, context + 1)
    part = {
        "q_THD": inputs["q_THD"][where].clone(),
        "positions": None if inputs["positions"] is None else inputs["positions"][where].clone(),
        "input_row_offsets": torch.tensor([0, where.stop - where.start], dtype=torch.int32),
        "kv_lengths": inputs["kv_lengths"][one],
        "lookup_table": inputs["lookup_table"][one],
    }
    return {**inputs, **part}, where


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("window", [-1, 8])
def test_a_token_has_the_same_bits_in_every_batch(
    attention: Attention, window: int, same_bits: SameBits
) -> None:
    case = cross_case("", torch.float32, (4, 2, 24), MIXED, 16, window)
    inputs = case.build(CPU, torch.Generator().manual_seed(3))
    whole = attention(**inputs)

    for context, tokens in (
        (0, slice(0, 1)),
        (3, slice(33, 36)),
        (3, slice(69, 70)),
        (4, slice(3)),
    ):
        part, where = only(inputs, context, tokens)
        assert same_bits(attention(**part), whole[where]), (context, tokens)


@pytest.mark.parametrize("attention", PATHS)
def test_pages_may_lie_anywhere(attention: Attention, same_bits: SameBits) -> None:
    inputs = cross_case("", torch.float32, (2, 1, 16), MIXED).build(
        CPU, torch.Generator().manual_seed(4)
    )
    order = torch.randperm(len(inputs["k_cache"]), generator=torch.Generator().manual_seed(5))
    moved = {name: inputs[name][order] for name in ("k_cache", "v_cache")}
    moved["lookup_table"] = order.argsort()[inputs["lookup_table"].long()].int()

    assert same_bits(attention(**{**inputs, **moved}), attention(**inputs))


@pytest.mark.parametrize("attention", PATHS)
def test_a_token_that_sees_no_key_is_zero(attention: Attention) -> None:
    """Of a sequence without keys, or with a window that lies behind them."""
    inputs = cross_case("", torch.float32, (2, 1, 16), ((2, 0), (3, 10)), 16, 4).build(
        CPU, torch.Generator().manual_seed(6)
    )
    inputs["positions"] = torch.tensor([0, 0, 13, 12, 500], dtype=torch.int32)

    out = attention(**inputs)

    zero = (out == 0).flatten(1).all(1)
    assert zero.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("attention", PATHS)
def test_nothing_gives_nothing(attention: Attention) -> None:
    cache = torch.ones(1, 1, 16, 8)
    for contexts in (0, 2):
        offsets, lengths = torch.zeros(contexts + 1).int(), torch.ones(contexts).int()
        table = torch.zeros(contexts, 1).int()
        out = attention(torch.ones(0, 2, 8), cache, cache, offsets, lengths, table, scale=1.0)
        assert out.shape == (0, 2, 8)


def test_wrong_inputs_are_named() -> None:
    inputs = cross_case("", torch.float32, (4, 2, 16), ((1, 3), (2, 5))).build(
        CPU, torch.Generator().manual_seed(1)
    )

    def attend(**changed: Any) -> None:
        cross_attention_ragged(**{**inputs, **changed})

    with pytest.raises(ValueError, match=r"q_THD must be \[T, H, D\], got \[3, 4\]"):
        attend(q_THD=inputs["q_THD"][..., 0])
    with pytest.raises(ValueError, match="q_THD must be of bfloat16 or .*, got float64"):
        attend(q_THD=inputs["q_THD"].double())
    with pytest.raises(ValueError, match=r"k_cache must be \[pages, K, page_size, 16\], got"):
        attend(k_cache=torch.ones(3, 2, 16, 8))
    with pytest.raises(ValueError, match="k_cache must be of float32, got float16"):
        attend(k_cache=inputs["k_cache"].half())
    with pytest.raises(ValueError, match=r"v_cache must be \[3, 2, 16, 16\], got \[2, 2, 16, 16\]"):
        attend(v_cache=inputs["v_cache"][:2])
    with pytest.raises(ValueError, match="head_dim of q_THD must be a multiple of 8 .*, got 4"):
        attend(
            q_THD=torch.ones(3, 4, 4),
            k_cache=torch.ones(3, 2, 16, 4),
            v_cache=torch.ones(3, 2, 16, 4),
        )
    with pytest.raises(ValueError, match="query heads must be a multiple of 2 key heads, got 3"):
        attend(q_THD=inputs["q_THD"][:, :3].contiguous())
    with pytest.raises(ValueError, match="input_row_offsets must be of int32, got int64"):
        attend(input_row_offsets=inputs["input_row_offsets"].long())
    with pytest.raises(ValueError, match=r"kv_lengths must be \[2\], got \[1\]"):
        attend(kv_lengths=inputs["kv_lengths"][:1])
    with pytest.raises(ValueError, match=r"lookup_table must be \[2, P\], got \[1, 1\]"):
        attend(lookup_table=inputs["lookup_table"][:1])
    with pytest.raises(ValueError, match="local_window_size must be from 1 to .*, got -2"):
        attend(local_window_size=-2)
    with pytest.raises(ValueError, match="positions must be given with local_window_size 4"):
        attend(local_window_size=4)
    with pytest.raises(ValueError, match=r"positions must be \[3\], got \[2\]"):
        attend(positions=torch.ones(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="input_row_offsets must have a context for the 3 rows"):
        attend(
            input_row_offsets=torch.zeros(1, dtype=torch.int32),
            kv_lengths=torch.zeros(0, dtype=torch.int32),
            lookup_table=torch.zeros(0, 1, dtype=torch.int32),
        )

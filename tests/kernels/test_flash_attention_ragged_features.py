"""Caps, sinks, fp8 caches and work lists of attention, against oracles of transformers and torch."""

import dataclasses
import math
import mmap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from quire.kernels.cases import Case, random_ragged_batch
from quire.kernels.flash_attention_ragged import flash_attention_ragged, plan_decode, tiles
from quire.kernels.flash_attention_ragged.cases import (
    SMALL_CASES,
    attention_case,
    scaled_dot_product,
)
from quire.kernels.flash_attention_ragged.cpu_torch import flash_attention_ragged_torch
from quire.kernels.flash_attention_ragged.kernel import (
    flash_attention_ragged_triton,
    plan_decode_triton,
)
from quire.kernels.flash_attention_ragged.reference import flash_attention_ragged_reference
from quire.kernels.flash_attention_ragged.splits import SPLIT_KEYS, count_splits
from quire.kernels.triton_helpers import e4m3_values

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
Attention = Callable[..., torch.Tensor]
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
PATHS = [
    pytest.param(flash_attention_ragged_reference, id="reference"),
    pytest.param(flash_attention_ragged, id="cpu"),
    pytest.param(flash_attention_ragged_triton, id="triton"),
]


def inputs_of(case: Case) -> dict[str, Any]:
    return case.build(CPU, torch.Generator().manual_seed(4))


def dense(inputs: dict[str, Any], name: str) -> torch.Tensor:
    """Keys or values [1, K, L, D] of the only context, as stored."""
    cache, batch = inputs[name], inputs["batch"]
    pages = cache[batch.lookup_table[0].long()]
    return pages.transpose(0, 1).flatten(1, 2)[None, :, : batch.kv_lengths[0]]


def hidden_scores(inputs: dict[str, Any]) -> torch.Tensor:
    """0 or -inf [1, 1, T, L] of the only context."""
    count, length = inputs["batch"].query_lengths[0], inputs["batch"].kv_lengths[0]
    distance = torch.arange(length - count, length)[:, None] - torch.arange(length)
    visible = (distance >= 0) & (distance < (inputs["sliding_window"] or length))
    return torch.zeros(1, 1, count, length).masked_fill(~visible, float("-inf"))


ONE_CONTEXT = [pytest.param(((20, 50),), id="prefill"), pytest.param(((1, 600),), id="decode")]


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("lengths", ONE_CONTEXT)
@pytest.mark.parametrize("window", [None, 33])
def test_cap_equals_gemma2_of_transformers(
    attention: Attention, lengths: tuple[tuple[int, int], ...], window: int | None
) -> None:
    case = attention_case(
        "cap", torch.float32, (4, 2, 32), lengths, 16, window, soft_cap=3.0, scale=0.5
    )
    inputs = inputs_of(case)
    expected, _ = modeling_gemma2.eager_attention_forward(
        SimpleNamespace(num_key_value_groups=2, training=False),
        inputs["q_THD"].transpose(0, 1)[None],
        dense(inputs, "k_cache"),
        dense(inputs, "v_cache"),
        hidden_scores(inputs),
        scaling=0.5,
        softcap=3.0,
    )

    out = attention(**inputs)

    torch.testing.assert_close(out, expected[0], atol=5e-6, rtol=0)


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("lengths", ONE_CONTEXT)
@pytest.mark.parametrize("window", [None, 33])
def test_sinks_equal_gpt_oss_of_transformers(
    attention: Attention, lengths: tuple[tuple[int, int], ...], window: int | None
) -> None:
    case = attention_case("sinks", torch.float32, (4, 2, 32), lengths, 16, window)
    inputs = inputs_of(case)
    sinks = torch.tensor([-3.0, 0.0, 1.5, 9.0])
    expected, _ = modeling_gpt_oss.eager_attention_forward(
        SimpleNamespace(num_key_value_groups=2, training=False, sinks=sinks),
        inputs["q_THD"].transpose(0, 1)[None],
        dense(inputs, "k_cache"),
        dense(inputs, "v_cache"),
        hidden_scores(inputs),
        scaling=inputs["scale"],
    )

    out = attention(**inputs, sinks=sinks)

    torch.testing.assert_close(out, expected[0], atol=5e-6, rtol=0)


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("lengths", ONE_CONTEXT)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.bfloat16, 1.5e-2)], ids=str
)
def test_fp8_cache_equals_attention_of_its_values(
    attention: Attention,
    lengths: tuple[tuple[int, int], ...],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    inputs = inputs_of(attention_case("fp8", dtype, (4, 2, 32), lengths, fp8=True))
    expected = F.scaled_dot_product_attention(
        inputs["q_THD"].transpose(0, 1)[None].double(),
        dense(inputs, "k_cache").double() * 1.7,
        dense(inputs, "v_cache").double() * 0.6,
        hidden_scores(inputs).double(),
        scale=inputs["scale"],
        enable_gqa=True,
    )

    out = attention(**inputs, k_scale=1.7, v_scale=0.6)

    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), expected[0].transpose(0, 1), atol=tolerance, rtol=0, equal_nan=False
    )


@triton.jit
def values_kernel(codes, out, dtype: tl.constexpr):
    index = tl.arange(0, 256)
    values = e4m3_values(tl.load(codes + index), dtype)
    tl.store(out + index, values)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, tl.float32), (torch.float16, tl.float16)], ids=str
)
def test_gpus_without_fp8_read_every_code(dtype: torch.dtype, name: Any) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    out = torch.empty(256, dtype=dtype)

    values_kernel[(1,)](codes, out, name)

    expected = codes.view(FP8).to(dtype)
    torch.testing.assert_close(out, expected, atol=0, rtol=0, equal_nan=True)
    assert torch.equal(out.signbit(), expected.signbit() & ~expected.isnan())


def test_float16_on_a_gpu_is_near_float64() -> None:
    case = attention_case("fp16", torch.float16, (4, 2, 96), ((1, 40), (9, 3)))
    inputs = inputs_of(case)
    wide = {name: inputs[name].double() for name in ("q_THD", "k_cache", "v_cache")}
    expected = flash_attention_ragged_reference(**inputs | wide)

    out = flash_attention_ragged_triton(**inputs)

    torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 5000), max_size=40),
    window=st.one_of(st.none(), st.integers(1, 3000)),
)
def test_a_plan_has_every_split_of_every_context_once(
    lengths: list[int], window: int | None
) -> None:
    old = [*lengths, 100]
    new = [1] * len(lengths) + [3]
    batch, _ = random_ragged_batch(new, old, 128, CPU, torch.Generator())

    plan = plan_decode(batch, sliding_window=window)

    touched = [
        {key // SPLIT_KEYS for key in range(max(0, p - (window or p + 1) + 1), p + 1)}
        for p in lengths
    ]
    wanted = [(context, split) for context, own in enumerate(touched) for split in sorted(own)]
    contexts = torch.searchsorted(plan, torch.arange(int(plan[-1])), right=True) - 1
    found = [
        (context, min(touched[context]) + flat - int(plan[context]))
        for flat, context in enumerate(contexts.tolist())
    ]
    assert found == wanted
    assert plan.dtype == torch.int32
    assert len(wanted) <= count_splits(batch.kv_lengths[: len(lengths)], window)


@pytest.mark.parametrize("window", [None, 1, 700])
def test_the_plan_of_triton_crosses_blocks_of_contexts(window: int | None) -> None:
    lengths = torch.randint(0, 3000, (2500,)).tolist()
    batch, _ = random_ragged_batch([1] * 2500, lengths, 128, CPU, torch.Generator())

    plan = plan_decode_triton(batch, sliding_window=window)

    assert torch.equal(plan, plan_decode(batch, sliding_window=window))


@pytest.mark.parametrize(
    "attention", [*PATHS, pytest.param(flash_attention_ragged_torch, id="torch")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"soft_cap": 3.0}], ids=["plain", "cap"])
def test_pages_before_the_window_are_never_read(
    attention: Attention,
    dtype: torch.dtype,
    poison: float,
    options: dict[str, float],
    same_bits: SameBits,
) -> None:
    """Page 0 stands there once they are released, and others may write what they like to it."""
    lengths = ((1, 90), (1, 700), (1, 8), (20, 90), (33, 610), (5, 0))
    inputs = inputs_of(attention_case("w", dtype, (4, 2, 32), lengths, 16, 40)) | options
    batch = inputs["batch"]
    expected = attention(**inputs)
    table = batch.lookup_table.clone()
    for context, first in enumerate(batch.cache_lengths.tolist()):
        table[context, : max(0, first - 40 + 1) // 16] = 0
    assert (table != batch.lookup_table).sum() > 80
    caches = {name: inputs[name].clone() for name in ("k_cache", "v_cache")}
    for cache in caches.values():
        cache[0] = poison

    out = attention(**{**inputs, **caches, "batch": dataclasses.replace(batch, lookup_table=table)})

    assert same_bits(out, expected)


DECODE = attention_case("decode", torch.bfloat16, (2, 1, 32), ((1, 1100), (1, 0), (1, 513), (3, 9)))


def test_a_given_plan_changes_nothing(same_bits: SameBits) -> None:
    inputs = inputs_of(DECODE)
    for window in (None, 600):
        inputs["sliding_window"] = window
        plan = plan_decode(inputs["batch"], sliding_window=window)
        expected = flash_attention_ragged_triton(**inputs)
        assert same_bits(flash_attention_ragged_triton(**inputs, decode_plan=plan), expected)
        flash_attention_ragged(**inputs, decode_plan=plan)


def test_lengths_of_the_host_are_only_bounds_for_decode(same_bits: SameBits) -> None:
    """As when a captured graph serves a later step: the device knows the lengths."""
    inputs = inputs_of(DECODE)
    expected = flash_attention_ragged_triton(**inputs)
    batch = inputs["batch"]
    inputs["batch"] = dataclasses.replace(batch, kv_lengths=(700, 3000, 1, batch.kv_lengths[3]))

    assert same_bits(flash_attention_ragged_triton(**inputs), expected)


@pytest.mark.parametrize("attention", PATHS)
def test_an_empty_step_gives_no_rows(attention: Attention) -> None:
    batch, num_pages = random_ragged_batch([1], [3], 16, CPU, torch.Generator())
    fields = {
        "input_row_offsets": batch.input_row_offsets[:1],
        "cache_lengths": batch.cache_lengths[:0],
        "lookup_table": batch.lookup_table[:0],
        "positions": batch.positions[:0],
        "slots": batch.slots[:0],
    }
    empty = dataclasses.replace(batch, **fields, query_lengths=(), kv_lengths=(), num_decode=0)
    cache = torch.zeros(num_pages, 2, 16, 32)

    out = attention(torch.zeros(0, 4, 32), cache, cache, empty, scale=1.0)

    assert out.shape == (0, 4, 32)


@pytest.mark.parametrize("decode", [True, False], ids=["decode", "prefill"])
def test_pages_beyond_32_bits_are_found(decode: bool, same_bits: SameBits) -> None:
    """Memory that is mapped and never touched, but for two pages at its end."""
    shape = (2**31 // (2 * 128 * 256) + 4, 2, 128, 256)
    size = torch.Size(shape).numel()
    assert size > 2**31
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    cache = torch.frombuffer(memory, dtype=torch.uint8).view(shape).view(FP8)
    generator = torch.Generator().manual_seed(8)
    cache[-2:] = torch.randn(2, *shape[1:], generator=generator).to(FP8)
    batch, _ = random_ragged_batch([1 if decode else 2], [150], 128, CPU, generator)
    q = torch.randn(batch.num_tokens, 2, 256, generator=generator).to(torch.bfloat16)

    far = torch.tensor([[shape[0] - 1, shape[0] - 2]], dtype=torch.int32)
    batch = dataclasses.replace(batch, lookup_table=far)
    out = flash_attention_ragged_triton(q, cache, cache, batch, scale=0.1)

    small = cache[-2:].clone()
    batch = dataclasses.replace(batch, lookup_table=torch.tensor([[1, 0]], dtype=torch.int32))
    assert same_bits(flash_attention_ragged_triton(q, small, small, batch, scale=0.1), out)


@pytest.mark.parametrize(
    "case",
    [case for case in SMALL_CASES if "cap" not in case.name and "sinks" not in case.name],
    ids=lambda case: case.name,
)
def test_the_peer_of_the_benchmark_computes_the_same(case: Case) -> None:
    inputs = inputs_of(case)
    if inputs.pop("k_scale", 1.0) != 1.0 or inputs.pop("v_scale", 1.0) != 1.0:
        inputs = inputs_of(case) | {"k_scale": 1.0, "v_scale": 1.0}
    expected = flash_attention_ragged_reference(**inputs)
    inputs = {k: v for k, v in inputs.items() if not k.endswith("_scale")}
    torch.testing.assert_close(
        scaled_dot_product(**inputs), expected, atol=2 * case.tolerance, rtol=0
    )


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_tiles_fit_every_model(
    capability: int, dtype: torch.dtype, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_capability", lambda: capability)
    for group in (1, 3, 8, 20, 71):
        shared, prefill, decode = tiles.tile_sizes(2 * group, 2, head_dim, dtype)
        assert SPLIT_KEYS % shared["BLOCK_N"] == 0
        assert prefill["BLOCK_M"] % prefill["GROUP_PADDED"] == 0
        assert prefill["GROUP_PADDED"] >= group
        assert decode["BLOCK_M"] >= group
        rows_per_warp = {tile["BLOCK_M"] / tile["num_warps"] for tile in (prefill, decode)}
        assert len(rows_per_warp) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"soft_cap": 0.0}, r"soft_cap must be a number above 0, got 0\.0"),
        ({"soft_cap": float("inf")}, "soft_cap must be a number above 0, got inf"),
        ({"k_scale": -1.0}, r"k_scale must be a number above 0, got -1\.0"),
        ({"v_scale": float("nan")}, "v_scale must be a number above 0, got nan"),
        ({"sinks": torch.zeros(3)}, r"sinks must be \[4\], got \[3\]"),
        ({"sinks": torch.zeros(4).double()}, "sinks must be of float32, got float64"),
        ({"sinks": torch.zeros(4, device="meta")}, "sinks must be on cpu, got meta"),
        ({"decode_plan": torch.zeros(3).int()}, r"decode_plan must be \[2\], got \[3\]"),
        ({"decode_plan": torch.zeros(2)}, "decode_plan must be of int32, got float32"),
        ({"k_cache": torch.zeros(9, 2, 16, 32).to(FP8)}, "or both caches be float8_e4m3fn"),
        ({"q_THD": torch.zeros(3, 4 * 32)}, r"q_THD must be \[T, H, D\], got \[3, 128\]"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    batch, num_pages = random_ragged_batch([1, 2], [3, 4], 16, CPU, torch.Generator())
    cache = torch.zeros(num_pages, 2, 16, 32)
    inputs = {"q_THD": torch.zeros(3, 4, 32), "k_cache": cache, "v_cache": cache, "batch": batch}
    with pytest.raises(ValueError, match=message):
        flash_attention_ragged(**inputs | {"scale": 1.0} | change)


def test_a_plan_refuses_an_empty_window() -> None:
    batch, _ = random_ragged_batch([1], [3], 16, CPU, torch.Generator())
    with pytest.raises(ValueError, match="sliding_window must be at least 1, got 0"):
        plan_decode(batch, sliding_window=0)

"""Split of q, k and v: slices of the row, fp8 as torch rounds it, nothing else written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from quire.kernels.cases import Case
from quire.kernels.split_qkv_ragged import split_qkv_ragged
from quire.kernels.split_qkv_ragged.cases import SMALL_CASES, one_token_contexts, split_case
from quire.kernels.split_qkv_ragged.kernel import split_qkv_ragged_triton

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
Split = Callable[..., torch.Tensor]
PATHS = [
    pytest.param(split_qkv_ragged, id="cpu"),
    pytest.param(split_qkv_ragged_triton, id="triton"),
]


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("split", PATHS)
def test_is_slices_of_each_row(split: Split, case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(1))
    qkv, heads = inputs["qkv"], inputs["num_heads"]
    _, kv_heads, page_size, head_dim = inputs["k_cache"].shape

    q = split(**inputs)

    assert q.is_contiguous()
    assert q.shape == (len(qkv), heads, head_dim)
    assert torch.equal(q.flatten(1), qkv[:, : heads * head_dim])
    first = heads * head_dim
    width = kv_heads * head_dim
    for name, start in (("k", first), ("v", first + width)):
        cache = inputs[f"{name}_cache"]
        for token, slot in enumerate(inputs["batch"].slots.tolist()):
            stored = cache[slot // page_size, :, slot % page_size].flatten()
            expected = qkv[token, start : start + width] / inputs[f"{name}_scale"]
            if cache.dtype == FP8:
                expected = qkv[token, start : start + width].float() / inputs[f"{name}_scale"]
                expected = expected.clamp(-448, 448)
            assert torch.equal(bytes_of(stored), bytes_of(expected.to(cache.dtype)))


@pytest.mark.parametrize("split", PATHS)
def test_only_the_slots_of_the_batch_are_written(split: Split) -> None:
    inputs = SMALL_CASES[0].build(CPU, torch.Generator().manual_seed(3))
    split(**inputs)
    for name in ("k_cache", "v_cache"):
        is_written = ~inputs[name].isnan()
        assert is_written.sum() == len(inputs["qkv"]) * inputs[name][0, :, 0].numel()


def stored_as_fp8(split: Split, values: torch.Tensor, scale: float) -> torch.Tensor:
    """The bytes that a cache holds of `values`, as many as fill whole tokens of 512 keys."""
    keys = values.view(-1, 512)
    tokens = len(keys)
    cache = torch.zeros(tokens, 8, 1, 64, dtype=torch.uint8).view(FP8)
    other = cache.clone()
    batch = one_token_contexts(torch.zeros(tokens, dtype=torch.int32), torch.arange(tokens))
    rows = torch.cat((keys, keys.flip(1)), 1)
    split(rows, cache, other, batch, num_heads=0, k_scale=scale, v_scale=scale)
    assert torch.equal(bytes_of(other).view(-1, 512), bytes_of(cache).view(-1, 512).flip(1))
    return bytes_of(cache).flatten()


@pytest.mark.parametrize("split", PATHS)
def test_fp8_of_every_bfloat16_is_that_of_torch(split: Split) -> None:
    """Subnormals, halfway values, infinities and NaN among them."""
    values = torch.arange(2**16).to(torch.int32).to(torch.uint16).view(torch.bfloat16)

    # The interpreter's numpy warns of signalling NaN.
    with np.errstate(invalid="ignore"):
        stored = stored_as_fp8(split, values, 1.0)

    assert torch.equal(stored, bytes_of(values.float().clamp(-448, 448).to(FP8)))


@pytest.mark.parametrize("split", PATHS)
def test_fp8_rounds_float32_to_nearest_even(split: Split) -> None:
    """Every halfway point of e4m3 and the float32 below and above it."""
    codes = torch.arange(0x7E, dtype=torch.uint8)
    low = codes.view(FP8).float()
    halfway = (low + (codes + 1).view(FP8).float()) / 2
    near = torch.stack((torch.nextafter(halfway, low), halfway, torch.nextafter(halfway, low + 99)))
    values = torch.nn.functional.pad(torch.cat((near, -near)).flatten(), (0, 268))

    stored = stored_as_fp8(split, values, 1.0)

    down, even, up = codes, codes + (codes & 1), codes + 1
    expected = torch.stack((down, even, up))
    assert torch.equal(stored[:756], torch.cat((expected, expected | 0x80)).flatten())


@pytest.mark.parametrize("split", PATHS)
def test_scales_may_be_whole_numbers(split: Split) -> None:
    values = torch.arange(512.0)
    for scale in (1, 3):
        assert torch.equal(
            stored_as_fp8(split, values, scale), stored_as_fp8(split, values, float(scale))
        )


@pytest.mark.parametrize("split", PATHS)
def test_fp8_divides_by_the_scale_in_float32(split: Split) -> None:
    values = torch.randn(2048, generator=torch.Generator().manual_seed(4)) * 30

    stored = stored_as_fp8(split, values, 0.07)

    assert torch.equal(stored, bytes_of((values / 0.07).clamp(-448, 448).to(FP8)))


@pytest.mark.parametrize("split", PATHS)
def test_no_tokens_write_nothing(split: Split) -> None:
    inputs = SMALL_CASES[0].build(CPU, torch.Generator().manual_seed(5))
    empty = one_token_contexts(torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))

    q = split(**inputs | {"qkv": inputs["qkv"][:0], "batch": empty})

    assert q.shape == (0, 3, 20)
    assert inputs["k_cache"].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(14, 100)}, r"qkv must have \(3 \+ 2 \* 2\) \* 20 columns, got 100"),
        ({"num_heads": -1}, "num_heads must be at least 0, got -1"),
        ({"qkv": torch.zeros(140, 14).t()}, r"the columns of qkv must be contiguous, got strides"),
        ({"qkv": torch.zeros(13, 140)}, "a row for each of the batch's 14 tokens, got 13"),
        ({"qkv": torch.zeros(14, 140).double()}, "qkv must be of .* got float64"),
        ({"qkv": torch.zeros(140)}, r"qkv must be \[T, \(H \+ 2K\) \* D\], got \[140\]"),
        ({"k_cache": torch.zeros(2, 20)}, r"k_cache must be \[pages, K, page_size, D\]"),
        ({"k_cache": torch.zeros(2, 2, 16, 20).half()}, "k_cache must be of float32 or float8"),
        ({"v_cache": torch.zeros(9, 2, 16, 20).to(FP8)}, "v_cache must be"),
        ({"k_cache": torch.zeros(20, 16, 2, 2).mT}, "k_cache must be contiguous"),
        (
            {"qkv": torch.zeros(14, 0), "k_cache": torch.zeros(9, 2, 16, 0)},
            r"k_cache must have no empty dimension but pages, got \[9, 2, 16, 0\]",
        ),
        ({"v_scale": 0.5}, "v_scale must be 1 unless v_cache is float8_e4m3fn, got 0.5"),
        ({"k_scale": 0.0}, "k_scale must be positive and finite, got 0.0"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    inputs = split_case("", torch.float32, (3, 2, 20)).build(CPU, torch.Generator().manual_seed(5))
    with pytest.raises(ValueError, match=message):
        split_qkv_ragged(**inputs | change)
    assert inputs["v_cache"].isnan().all()

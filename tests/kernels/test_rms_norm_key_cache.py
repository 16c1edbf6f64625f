"""Norm of cached keys: equal to transformers' own, in place, and exact per token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from quire.kernels.cases import Case
from quire.kernels.rms_norm_key_cache import rms_norm_key_cache
from quire.kernels.rms_norm_key_cache.cases import SMALL_CASES, key_norm_case
from quire.kernels.rms_norm_key_cache.kernel import rms_norm_key_cache_triton
from quire.kernels.split_qkv_ragged.cases import one_token_contexts

CPU = torch.device("cpu")
Norm = Callable[..., None]
PATHS = [
    pytest.param(rms_norm_key_cache, id="cpu"),
    pytest.param(rms_norm_key_cache_triton, id="triton"),
]


def written(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    page_size = cache.shape[2]
    return cache[slots // page_size, :, slots % page_size]


def by_transformers(inputs: dict[str, Any]) -> torch.Tensor:
    """The cache as it must be afterwards."""
    gamma, epsilon = inputs["gamma"], inputs["epsilon"]
    if inputs["weight_offset"]:
        norm = Gemma3RMSNorm(len(gamma), epsilon)
    elif inputs["multiply_before_cast"]:
        norm = Olmo2RMSNorm(len(gamma), epsilon)
    else:
        norm = Qwen3RMSNorm(len(gamma), epsilon)
    norm.weight.data = gamma
    cache = inputs["k_cache"].clone()
    page_size = cache.shape[2]
    for slot in inputs["batch"].slots.tolist():
        keys = cache[slot // page_size, :, slot % page_size]
        rows = keys.clone() if inputs["per_head_norm"] else keys.flatten()[None].clone()
        with torch.no_grad():
            rows[:, : len(gamma)] = norm(rows[:, : len(gamma)])
        keys.copy_(rows.view(keys.shape))
    return cache


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("norm", PATHS)
def test_equals_transformers(norm: Norm, case: Case) -> None:
    """And the keys of other slots and elements past the norm keep their bits."""
    inputs = case.build(CPU, torch.Generator().manual_seed(1))
    before, slots = inputs["k_cache"].clone(), inputs["batch"].slots
    expected = by_transformers(inputs)

    norm(**inputs)

    actual = inputs["k_cache"]
    torch.testing.assert_close(actual, expected, atol=case.tolerance, rtol=0)
    if case.dtype != torch.float32:
        # Rounded at another place, a fifth of the elements would differ; rsqrt moves a few.
        is_same = written(actual, slots) == written(expected, slots)
        assert is_same.float().mean() > 0.98
    is_other = torch.ones_like(actual, dtype=torch.bool)
    page_size, width = actual.shape[2], len(inputs["gamma"])
    normed = torch.ones_like(written(is_other, slots))
    whole = normed if inputs["per_head_norm"] else normed.flatten(1)
    whole[..., :width] = False
    is_other[slots // page_size, :, slots % page_size] = whole.view(normed.shape)
    assert torch.equal(actual[is_other], before[is_other])


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("norm", PATHS)
def test_bits_of_a_token_do_not_depend_on_its_batch(norm: Norm, threads: int, case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(2))
    batch, before = inputs["batch"], inputs["k_cache"].clone()
    norm(**inputs)
    for rows in (slice(0, 1), slice(7, 14)):
        part = one_token_contexts(batch.positions[rows], batch.slots[rows])
        cache = before.clone()
        norm(**inputs | {"k_cache": cache, "batch": part})
        together = written(inputs["k_cache"], part.slots)
        assert torch.equal(written(cache, part.slots), together)


@pytest.mark.parametrize("norm", PATHS)
def test_no_tokens_change_nothing(norm: Norm) -> None:
    inputs = SMALL_CASES[0].build(CPU, torch.Generator().manual_seed(3))
    before = inputs["k_cache"].clone()
    empty = one_token_contexts(torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))

    norm(**inputs | {"batch": empty})

    assert torch.equal(inputs["k_cache"], before)


@pytest.mark.parametrize("norm", PATHS)
def test_zero_keys_stay_zero(norm: Norm) -> None:
    inputs = SMALL_CASES[0].build(CPU, torch.Generator().manual_seed(4))
    inputs["k_cache"].zero_()

    norm(**inputs)

    assert not inputs["k_cache"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": torch.ones(19)}, r"gamma must be \[20\], got \[19\]; rms_norm_cols confirms"),
        (
            {"gamma": torch.ones(19), "rms_norm_cols": 18},
            r"gamma must be \[18\], got \[19\]",
        ),
        ({"gamma": torch.ones(40)}, r"gamma must be \[20\], got \[40\]"),
        ({"per_head_norm": False}, r"gamma must be \[40\], got \[20\]"),
        ({"rms_norm_cols": 21}, "rms_norm_cols must be from 1 to 20, got 21"),
        ({"rms_norm_cols": 0}, "rms_norm_cols must be from 1 to 20, got 0"),
        ({"gamma": torch.ones(20).half()}, "gamma must be of float32, got float16"),
        ({"gamma": torch.ones(1, 20)}, r"gamma must be \[N\], got \[1, 20\]"),
        ({"k_cache": torch.zeros(9, 2, 20)}, r"k_cache must be \[pages, K, page_size, D\]"),
        ({"k_cache": torch.zeros(9, 2, 16, 20).to(torch.float8_e4m3fn)}, "got float8_e4m3fn"),
        ({"k_cache": torch.zeros(9, 2, 20, 16).mT}, "k_cache must be contiguous"),
        (
            {
                "k_cache": torch.zeros(9, 2, 16, 20, device="meta"),
                "gamma": torch.ones(20).to("meta"),
            },
            "k_cache must be on cpu as the batch, got meta",
        ),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    case = key_norm_case("", torch.float32, (2, 20))
    inputs = case.build(CPU, torch.Generator().manual_seed(5))
    with pytest.raises(ValueError, match=message):
        rms_norm_key_cache(**inputs | change)

"""Quantization to fp8: torch's cast, transformers' scales, edge values, and exact rows."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from quire.kernels.quantize_scaled_float8 import (
    quantize_dynamic_scaled_float8,
    quantize_static_scaled_float8,
)
from quire.kernels.quantize_scaled_float8.kernel import (
    quantize_dynamic_scaled_float8_triton,
    quantize_static_scaled_float8_triton,
)

FP8 = torch.float8_e4m3fn
TINY = torch.finfo(torch.float32).tiny
STATIC = [
    pytest.param(quantize_static_scaled_float8, id="cpu"),
    pytest.param(quantize_static_scaled_float8_triton, id="triton"),
]
DYNAMIC = [
    pytest.param(quantize_dynamic_scaled_float8, id="cpu"),
    pytest.param(quantize_dynamic_scaled_float8_triton, id="triton"),
]
Static = Callable[..., torch.Tensor]
Dynamic = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def codes(stored: torch.Tensor) -> torch.Tensor:
    return stored.view(torch.uint8)


@pytest.mark.parametrize("quantize", STATIC)
def test_every_code_is_found_again(quantize: Static) -> None:
    every = torch.arange(256).to(torch.uint8)[None]
    values = every.view(FP8).float()

    found = quantize(values, torch.ones(1))

    assert torch.equal(codes(found), every)
    scaled = quantize(values * 2.0**-9, torch.tensor(2.0**-9))
    assert torch.equal(codes(scaled), every)


@pytest.mark.parametrize("quantize", STATIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_cast_of_torch(quantize: Static, dtype: torch.dtype) -> None:
    """Between all neighbours: ties, what is a little off them, subnormals and what overflows."""
    grid = torch.arange(0x7E).to(torch.uint8).view(FP8).float()
    middles = torch.arange(1, 0x7F).to(torch.uint8).view(FP8).float() / 2 + grid / 2
    near = torch.cat([middles, middles * (1 + 2**-9), middles * (1 - 2**-9), middles / 512])
    x = torch.cat([near, -near, torch.tensor([0.0, -0.0, 448.0, 463.9])]).to(dtype)[None]

    stored = quantize(x, torch.ones(1, 1))

    assert torch.equal(codes(stored), codes(x.float().to(FP8)))


@pytest.mark.parametrize("quantize", STATIC)
def test_what_overflows_saturates_and_nan_stays(quantize: Static) -> None:
    x = torch.tensor([[1e30, -1e30, torch.inf, -torch.inf, torch.nan, 465.0]])

    stored = quantize(x, torch.tensor([0.5])).float()

    expected = torch.tensor([[448.0, -448.0, 448.0, -448.0, torch.nan, 448.0]])
    torch.testing.assert_close(stored, expected, rtol=0, atol=0, equal_nan=True)


def quantizer_of_transformers(group: int) -> Fp8Quantize:
    config = SimpleNamespace(weight_block_size=(1, group), scale_fmt=None)
    return Fp8Quantize(SimpleNamespace(quantization_config=config))


@pytest.mark.parametrize("quantize", DYNAMIC)
@pytest.mark.parametrize(("columns", "group"), [(256, 128), (96, 24), (70, 70)])
def test_scales_equal_those_of_transformers(quantize: Dynamic, columns: int, group: int) -> None:
    """Its scale is the inverse of an inverse: the last bits differ, and values by one step."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, columns, generator=generator) * torch.exp2(torch.arange(-4.0, 5.0))[:, None]
    theirs: dict[str, Any] = quantizer_of_transformers(group).convert({"x.weight": x})

    stored, scales = quantize(x, group_size_or_per_token=group)

    torch.testing.assert_close(scales, theirs["x.weight_scale_inv"], rtol=1e-6, atol=0)
    torch.testing.assert_close(stored.float(), theirs["x.weight"].float(), rtol=0.125, atol=2**-9)
    assert (codes(stored) == codes(theirs["x.weight"])).float().mean() > 0.99


@pytest.mark.parametrize("quantize", DYNAMIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_stored_times_scale_is_the_value_again(quantize: Dynamic, dtype: torch.dtype) -> None:
    """Within half a step: 2^-4 of the value, and 2^-10 of the scale where it is subnormal."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 333, generator=generator).to(dtype)

    stored, scales = quantize(x)

    assert scales.shape == (7, 1)
    error = (stored.double() * scales.double() - x.double()).abs()
    assert bool((error <= x.double().abs() * (2**-4 + 1e-6) + scales.double() * 2**-10).all())
    assert stored.float().abs().amax(1).tolist() == [448.0] * 7


@pytest.mark.parametrize("quantize", DYNAMIC)
def test_zeros_stay_zeros(quantize: Dynamic) -> None:
    x = torch.zeros(2, 300)
    x[1, 200] = 7.0

    stored, scales = quantize(x, group_size_or_per_token=128)

    assert scales.tolist() == [[TINY] * 3, [TINY, 7 / 448, TINY]]
    assert stored.float().nonzero().tolist() == [[1, 200]]
    assert stored[1, 200].item() == 448.0


@pytest.mark.parametrize("quantize", DYNAMIC)
def test_nan_and_infinity_do_not_spoil_their_neighbours(quantize: Dynamic) -> None:
    x = torch.tensor([[torch.nan, 2.0, -1.0], [-torch.inf, 1e38, 0.0], [torch.nan] * 3])

    stored, scales = quantize(x)

    greatest = torch.finfo(torch.float32).max
    expected = [2 / 448, torch.tensor(greatest / 448).item(), TINY]
    torch.testing.assert_close(scales[:, 0], torch.tensor(expected), rtol=0, atol=0)
    values = [[torch.nan, 448.0, -224.0], [-448.0, 128.0, 0.0], [torch.nan] * 3]
    torch.testing.assert_close(stored.float(), torch.tensor(values), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("quantize", DYNAMIC)
def test_a_bound_holds_the_scale_and_saturates(quantize: Dynamic) -> None:
    x = torch.tensor([[1.0, 2.0, -100.0], [1.0, 2.0, 3.0]])

    stored, scales = quantize(x, scale_ub=4.0)

    assert torch.equal(scales, torch.tensor([[4.0], [3.0]]) / 448)
    assert stored[0].float().tolist() == [112.0, 224.0, -448.0]


@pytest.mark.parametrize("quantize", DYNAMIC)
def test_subnormal_rows_are_kept_as_well_as_a_normal_scale_can(quantize: Dynamic) -> None:
    x = torch.tensor([[2.0**-130, -(2.0**-127), 0.0]])

    stored, scales = quantize(x)

    assert scales.tolist() == [[TINY]]
    assert (stored.float() * scales).tolist() == x.tolist()


@pytest.mark.parametrize("quantize", DYNAMIC)
def test_a_group_wider_than_a_row_is_the_row(quantize: Dynamic) -> None:
    """And takes no more memory."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(4))

    stored, scales = quantize(x, group_size_or_per_token=2**40)

    expected, expected_scales = quantize(x)
    assert torch.equal(codes(stored), codes(expected))
    assert torch.equal(scales, expected_scales)


@pytest.mark.parametrize("quantize", DYNAMIC)
def test_no_rows_give_no_rows(quantize: Dynamic) -> None:
    stored, scales = quantize(torch.empty(0, 200), group_size_or_per_token=128)

    assert stored.shape == (0, 200)
    assert scales.shape == (0, 2)
    assert quantize_static_scaled_float8(torch.empty(0, 8), torch.ones(1)).shape == (0, 8)


def test_wrong_inputs_are_named() -> None:
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match="x_TK must be of bfloat16 or float16 or float32, got int"):
        quantize_static_scaled_float8(x.int(), torch.ones(1))
    with pytest.raises(ValueError, match=r"scale must be \[\], \[1\] or \[1, 1\], got \[2\]"):
        quantize_static_scaled_float8(x, torch.ones(2))
    with pytest.raises(ValueError, match="scale must be of float32, got bfloat16"):
        quantize_static_scaled_float8(x, torch.ones(1).bfloat16())
    with pytest.raises(ValueError, match=r"x_TK must be \[T, K\], got \[4\]"):
        quantize_dynamic_scaled_float8(torch.ones(4))
    with pytest.raises(ValueError, match=r"x_TK must be contiguous, got strides \[1, 2\]"):
        quantize_dynamic_scaled_float8(torch.ones(4, 2).t())
    with pytest.raises(ValueError, match=r"x_TK must have at least one column, got \[2, 0\]"):
        quantize_dynamic_scaled_float8(torch.ones(2, 0))
    for wrong in (0, -2):
        with pytest.raises(ValueError, match=f"must be -1 or at least 1, got {wrong}"):
            quantize_dynamic_scaled_float8(x, group_size_or_per_token=wrong)
    for bound in (0.0, -1.0, 1e-39, 1e39, float("inf"), float("nan")):
        with pytest.raises(
            ValueError, match=f"scale_ub must be from 1.17.* got {re.escape(str(bound))}$"
        ):
            quantize_dynamic_scaled_float8(x, scale_ub=bound)

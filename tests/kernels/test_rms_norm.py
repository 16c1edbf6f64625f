"""RMS norm: equal to transformers' own, and exact per row."""

from collections.abc import Callable

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from quire.kernels.cases import Case
from quire.kernels.quantize_scaled_float8 import (
    quantize_dynamic_scaled_float8,
    quantize_static_scaled_float8,
)
from quire.kernels.rms_norm import rms_norm, rms_norm_quantized
from quire.kernels.rms_norm.cases import CASES, SMALL_CASES
from quire.kernels.rms_norm.kernel import rms_norm_quantized_triton, rms_norm_triton

CPU = torch.device("cpu")
Norm = Callable[..., tuple[torch.Tensor, torch.Tensor]]
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
PATHS = [pytest.param(rms_norm, id="cpu"), pytest.param(rms_norm_triton, id="triton")]


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("norm", PATHS)
def test_equals_transformers(norm: Norm, case: Case, same_bits: SameBits) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(1))
    total = inputs["x_TC"]
    if inputs["residual_TC"] is not None:
        total = total + inputs["residual_TC"]
    oracle = LlamaRMSNorm(total.shape[1], inputs["epsilon"])
    oracle.weight.data = inputs["weight_C"]

    normed, residual = norm(**inputs)

    assert same_bits(residual, total)
    assert normed.dtype == total.dtype
    with torch.no_grad():
        torch.testing.assert_close(normed, oracle(total), atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [1, 255, 16384])
@pytest.mark.parametrize("norm", PATHS)
def test_offset_before_the_cast_equals_gemma(
    norm: Norm, columns: int, dtype: torch.dtype, same_bits: SameBits
) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, columns, generator=generator).to(dtype)
    oracle = GemmaRMSNorm(columns, 1e-6).to(dtype)
    oracle.weight.data = (0.3 * torch.randn(columns, generator=generator)).to(dtype)

    normed, _ = norm(x, oracle.weight.data, 1e-6, weight_offset=1.0, multiply_before_cast=True)

    # Rounded once: one unit in the last place, where a reciprocal root's last bit decides.
    rtol = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    with torch.no_grad():
        torch.testing.assert_close(normed, oracle(x), atol=1e-6, rtol=rtol)
    same = (normed == oracle(x)).float().mean()
    assert dtype == torch.float32 or same > 0.99


@pytest.mark.parametrize("norm", PATHS)
def test_an_offset_alone_is_added_to_the_weight_in_float32(norm: Norm, same_bits: SameBits) -> None:
    x = torch.randn(2, 300).bfloat16()
    weight = torch.full((300,), 1.0 / 512).bfloat16()

    normed, _ = norm(x, weight, 1e-6, weight_offset=1.0)

    plain, _ = norm(x, torch.ones(300).bfloat16(), 1e-6)
    assert same_bits(normed, (plain.float() * (1 + 1.0 / 512)).bfloat16())


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("norm", "quantized"),
    [(rms_norm, rms_norm_quantized), (rms_norm_triton, rms_norm_quantized_triton)],
)
def test_quantized_is_the_norm_then_the_quantization(
    norm: Norm,
    quantized: Callable[..., tuple[torch.Tensor, ...]],
    dtype: torch.dtype,
    with_residual: bool,
    same_bits: SameBits,
) -> None:
    x, residual = torch.randn(2, 4, 300).to(dtype)
    x[2] = residual[2] = 0.0
    weight = torch.rand(300).to(dtype)
    options = {"weight_offset": 1.0, "multiply_before_cast": with_residual}
    inputs = (x, weight, 1e-6, residual if with_residual else None)
    normed, total = norm(*inputs, **options)
    scale = torch.tensor(0.004)

    dynamic, scales, new_residual = quantized(*inputs, **options)
    static, same_scale, _ = quantized(*inputs, **options, scale=scale)

    expected, expected_scales = quantize_dynamic_scaled_float8(normed)
    assert same_bits(new_residual, total)
    assert same_bits(scales, expected_scales)
    assert torch.equal(dynamic.view(torch.uint8), expected.view(torch.uint8))
    expected = quantize_static_scaled_float8(normed, scale)
    assert torch.equal(static.view(torch.uint8), expected.view(torch.uint8))
    assert same_scale is scale


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_near_float64(case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(2))
    normed, residual = rms_norm(**inputs)
    wide = residual.double()

    scale = (wide.square().mean(-1, keepdim=True) + inputs["epsilon"]).rsqrt()
    expected = wide * scale * inputs["weight_C"].double()

    torch.testing.assert_close(normed.double(), expected, atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [64, 192, 250, 576, 1024, 4096])
def test_a_row_has_the_same_bits_in_every_batch(
    columns: int, dtype: torch.dtype, threads: int, same_bits: SameBits
) -> None:
    x, residual = torch.randn(2, 130, columns, dtype=dtype).unbind()
    weight = torch.rand(columns).to(dtype)
    full, _ = rms_norm(x, weight, 1e-5, residual)

    for rows in (*range(1, 36), 100, 129):
        start = 130 - rows
        part, _ = rms_norm(x[start:], weight, 1e-5, residual[start:])
        assert same_bits(part, full[start:]), rows


def test_triton_rows_have_the_same_bits_in_every_batch(same_bits: SameBits) -> None:
    x = torch.randn(9, 100)
    weight = torch.rand(100)
    full, _ = rms_norm_triton(x, weight, 1e-5)

    for start in range(9):
        assert same_bits(rms_norm_triton(x[start:], weight, 1e-5)[0], full[start:])


@pytest.mark.parametrize("norm", PATHS)
def test_no_rows_give_no_rows(norm: Norm) -> None:
    normed, residual = norm(torch.empty(0, 8), torch.ones(8), 1e-5, torch.empty(0, 8))

    assert normed.shape == residual.shape == (0, 8)


def test_wrong_inputs_are_named() -> None:
    x, weight = torch.ones(3, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"x_TC must be contiguous, got strides \[1, 3\]"):
        rms_norm(torch.ones(8, 3).t(), weight, 1e-5)
    with pytest.raises(ValueError, match=r"weight_C must be \[8\], got \[7\]"):
        rms_norm(x, torch.ones(7), 1e-5)
    with pytest.raises(ValueError, match="weight_C must be of float32, got bfloat16"):
        rms_norm(x, weight.bfloat16(), 1e-5)
    with pytest.raises(ValueError, match=r"residual_TC must be \[3, 8\], got \[2, 8\]"):
        rms_norm(x, weight, 1e-5, torch.ones(2, 8))
    with pytest.raises(ValueError, match=r"scale must be \[\], \[1\] or \[1, 1\], got \[3\]"):
        rms_norm_quantized(x, weight, 1e-5, scale=torch.ones(3))
    with pytest.raises(ValueError, match=r"x_TC must have columns, got \[3, 0\]"):
        rms_norm_quantized(torch.ones(3, 0), torch.ones(0), 1e-5)

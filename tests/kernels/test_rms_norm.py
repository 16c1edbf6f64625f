"""RMS norm: equal to transformers' own, and exact per row."""

from collections.abc import Callable

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from quire.kernels.cases import Case
from quire.kernels.rms_norm import rms_norm
from quire.kernels.rms_norm.cases import CASES, SMALL_CASES
from quire.kernels.rms_norm.kernel import rms_norm_triton

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

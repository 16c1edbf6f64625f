"""SwiGLU activation: near float64 everywhere, and exact per element."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from quire.kernels.cases import Case
from quire.kernels.swish_glu import swish_glu
from quire.kernels.swish_glu.cases import CASES, SMALL_CASES
from quire.kernels.swish_glu.kernel import swish_glu_triton

CPU = torch.device("cpu")
Glu = Callable[[torch.Tensor], torch.Tensor]
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
PATHS = [pytest.param(swish_glu, id="cpu"), pytest.param(swish_glu_triton, id="triton")]
RELATIVE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def expected_of(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, -1)
    return F.silu(gate) * up


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("glu", PATHS)
def test_is_near_float64(glu: Glu, case: Case) -> None:
    gate_up = case.build(CPU, torch.Generator().manual_seed(1))["gate_up_T2F"]

    out = glu(gate_up)

    assert out.dtype == case.dtype
    rtol = RELATIVE[case.dtype]
    torch.testing.assert_close(out.double(), expected_of(gate_up), atol=1e-6, rtol=rtol)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_within_the_tolerance_of_its_case(case: Case) -> None:
    gate_up = case.build(CPU, torch.Generator().manual_seed(2))["gate_up_T2F"]

    out = swish_glu(gate_up)

    expected = expected_of(gate_up)
    torch.testing.assert_close(out.double(), expected, atol=case.tolerance, rtol=0)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, in the interpreter
@pytest.mark.parametrize("glu", PATHS)
def test_great_gates_overflow_to_the_limits_of_silu(glu: Glu) -> None:
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]])

    out = glu(torch.cat((gate, torch.ones_like(gate)), 1))

    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0, 0.0, 100.0, 1e4]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("features", [5, 64, 250, 704, 1536])
def test_a_row_has_the_same_bits_in_every_batch(
    features: int, dtype: torch.dtype, threads: int, same_bits: SameBits
) -> None:
    gate_up = (torch.randn(130, 2 * features) * 4).to(dtype)
    full = swish_glu(gate_up)

    for rows in (*range(1, 36), 100, 129):
        start = 130 - rows
        assert same_bits(swish_glu(gate_up[start:]), full[start:]), rows


@pytest.mark.parametrize("glu", PATHS)
def test_no_rows_give_no_rows(glu: Glu) -> None:
    assert glu(torch.empty(0, 8)).shape == (0, 4)


def test_wrong_inputs_are_named() -> None:
    for wrong in (torch.ones(3, 7), torch.ones(8)):
        with pytest.raises(ValueError, match=r"gate_up_T2F must be \[T, 2F\], got"):
            swish_glu(wrong)
    with pytest.raises(ValueError, match="gate_up_T2F must be contiguous"):
        swish_glu(torch.ones(8, 4).t())

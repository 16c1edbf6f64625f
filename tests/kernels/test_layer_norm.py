"""Layer norm: equal to torch's own in float64, and exact per row."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from quire.kernels.layer_norm import layer_norm
from quire.kernels.layer_norm.kernel import layer_norm_triton

Norm = Callable[..., tuple[torch.Tensor, torch.Tensor]]
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
PATHS = [pytest.param(layer_norm, id="cpu"), pytest.param(layer_norm_triton, id="triton")]
TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("with_all", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("columns", [1, 255, 16384])
@pytest.mark.parametrize("norm", PATHS)
def test_equals_torch_in_float64(
    norm: Norm, columns: int, dtype: torch.dtype, with_all: bool, same_bits: SameBits
) -> None:
    """A mean of many deviations: the variance is that of the centered values."""
    x, residual = (torch.randn(2, 3, columns) + 20.0).to(dtype)
    weight, bias = torch.rand(2, columns).to(dtype)
    total = x + residual if with_all else x

    normed, new_residual = norm(
        x, weight, bias if with_all else None, 1e-5, residual if with_all else None
    )

    wide = [None if one is None else one.double() for one in (weight, bias if with_all else None)]
    expected = F.layer_norm(total.double(), (columns,), *wide, 1e-5)
    assert same_bits(new_residual, total)
    assert normed.dtype == dtype
    # float32 knows a mean of 40 to 2e-6 of the deviation.
    tolerance = max(TOLERANCE[dtype], 4e-5)
    torch.testing.assert_close(normed.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("columns", [64, 250, 1024])
def test_a_row_has_the_same_bits_in_every_batch(
    columns: int, threads: int, same_bits: SameBits
) -> None:
    x, residual = torch.randn(2, 70, columns)
    weight, bias = torch.rand(2, columns)
    full, _ = layer_norm(x, weight, bias, 1e-5, residual)

    for rows in (*range(1, 36), 69):
        part, _ = layer_norm(x[-rows:], weight, bias, 1e-5, residual[-rows:])
        assert same_bits(part, full[-rows:]), rows


@pytest.mark.parametrize("norm", PATHS)
def test_nothing_gives_nothing(norm: Norm) -> None:
    normed, residual = norm(torch.empty(0, 8), torch.ones(8), None, 1e-5, torch.empty(0, 8))

    assert normed.shape == residual.shape == (0, 8)


def test_wrong_inputs_are_named() -> None:
    x, weight = torch.ones(3, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"x_TC must be \[T, C\], got \[8\]"):
        layer_norm(weight, weight, None, 1e-5)
    with pytest.raises(ValueError, match=r"weight_C must be \[8\], got \[7\]"):
        layer_norm(x, torch.ones(7), None, 1e-5)
    with pytest.raises(ValueError, match="bias_C must be of float32, got bfloat16"):
        layer_norm(x, weight, weight.bfloat16(), 1e-5)
    with pytest.raises(ValueError, match=r"residual_TC must be \[3, 8\], got \[2, 8\]"):
        layer_norm(x, weight, None, 1e-5, torch.ones(2, 8))

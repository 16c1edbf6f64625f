"""Group norm: equal to torch's own in float64, and exact per sample."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from quire.kernels.group_norm import group_norm
from quire.kernels.group_norm.kernel import group_norm_triton

Norm = Callable[..., torch.Tensor]
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
PATHS = [pytest.param(group_norm, id="cpu"), pytest.param(group_norm_triton, id="triton")]
TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("shape", "num_groups"),
    [((2, 6), 2), ((3, 4, 1), 4), ((1, 6, 70, 65), 2), ((2, 3, 2, 3, 5), 1)],
    ids=str,
)
@pytest.mark.parametrize("norm", PATHS)
def test_equals_torch_in_float64(
    norm: Norm, shape: tuple[int, ...], num_groups: int, dtype: torch.dtype
) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 1.0).to(dtype)
    weight, bias = torch.rand(2, shape[1]).to(dtype)

    for given in (bias, None):
        out = norm(x, num_groups, weight, given, 1e-5)

        wide = None if given is None else given.double()
        expected = F.group_norm(x.double(), num_groups, weight.double(), wide, 1e-5)
        assert out.dtype == dtype
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


def test_a_sample_has_the_same_bits_in_every_batch(threads: int, same_bits: SameBits) -> None:
    """One group of more elements than torch sums in one thread."""
    x = torch.randn(5, 2, 200, 200)
    weight, bias = torch.rand(2, 2)
    full = group_norm(x, 1, weight, bias, 1e-5)

    for start in range(5):
        assert same_bits(group_norm(x[start:], 1, weight, bias, 1e-5), full[start:])


@pytest.mark.parametrize("norm", PATHS)
def test_nothing_gives_nothing(norm: Norm) -> None:
    assert norm(torch.empty(0, 4, 3), 2, torch.ones(4), None, 1e-5).shape == (0, 4, 3)


def test_wrong_inputs_are_named() -> None:
    x, weight = torch.ones(2, 6, 3), torch.ones(6)
    with pytest.raises(ValueError, match=r"x must be \[N, C, ...\], got \[6\]"):
        group_norm(weight, 2, weight, None, 1e-5)
    for wrong in (0, 4, -1):
        with pytest.raises(ValueError, match=f"num_groups must divide 6 channels, got {wrong}"):
            group_norm(x, wrong, weight, None, 1e-5)
    with pytest.raises(ValueError, match=r"weight_C must be \[6\], got \[3\]"):
        group_norm(x, 2, torch.ones(3), None, 1e-5)
    with pytest.raises(ValueError, match="bias_C must be of float32, got bfloat16"):
        group_norm(x, 2, weight, weight.bfloat16(), 1e-5)
    with pytest.raises(ValueError, match="x must be contiguous"):
        group_norm(x.transpose(0, 2), 1, torch.ones(6), None, 1e-5)

"""A matrix per head: against float64, and with bits that are a row's own."""

from collections.abc import Callable

import pytest
import torch

from quire.kernels.linear.tile_plan import TilePlans
from quire.pipelines.nn.head_linear import GroupedHeads, PreparedHeads

KINDS = [
    pytest.param(lambda weight: PreparedHeads(weight, TilePlans()), id="prepared"),
    pytest.param(lambda weight: GroupedHeads(weight, exact=True), id="grouped"),
]
INEXACT_KINDS = [
    pytest.param(lambda weight: PreparedHeads(weight, None), id="prepared-inexact"),
    pytest.param(lambda weight: GroupedHeads(weight, exact=False), id="grouped-inexact"),
]
Make = Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.mark.parametrize("make", KINDS + INEXACT_KINDS)
def test_every_head_has_its_own_matrix(make: Make) -> None:
    weight = random(3, 12, 20, dtype=torch.float32).transpose(1, 2)
    # A part of wider heads, as queries are.
    x = random(5, 3, 17, dtype=torch.float32)[..., :12]

    found = make(weight)(x)

    expected = torch.einsum("thk,hnk->thn", x.double(), weight.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(512, 128), (128, 512), (12, 40), (40, 20)])
@pytest.mark.parametrize("make", KINDS)
def test_a_row_has_the_same_bits_alone_and_among_others(
    make: Make, sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    layer = make(random(2, *sizes, dtype=dtype))
    x = random(70, 2, sizes[1], dtype=dtype)

    whole = layer(x)

    for start, end in ((0, 1), (69, 70), (3, 20), (7, 47)):
        torch.testing.assert_close(layer(x[start:end]), whole[start:end], rtol=0, atol=0)

"""int8 weights: numbers times scales to the bit, and matmuls near float64."""

from collections.abc import Callable

import pytest
import torch

from quire.kernels.int8 import dequantize_int8, matmul_int8
from quire.kernels.int8.kernel import dequantize_int8_triton, matmul_int8_triton

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Op = Callable[..., torch.Tensor]
DEQUANTIZE = [
    pytest.param(dequantize_int8, id="cpu"),
    pytest.param(dequantize_int8_triton, id="triton"),
]
MATMUL = [pytest.param(matmul_int8, id="cpu"), pytest.param(matmul_int8_triton, id="triton")]


def weight_and_scale(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)
    return weight, torch.rand(rows, 1, generator=generator) / 64


@pytest.mark.parametrize("dequantize", DEQUANTIZE)
def test_every_number_is_its_scale_times_as_much(dequantize: Op, same_bits: SameBits) -> None:
    weight = torch.arange(-128, 128, dtype=torch.int8).repeat(5, 1)
    scale = torch.tensor([[1.0], [0.1], [2.0**-100], [3e30], [0.0]])

    expected = (weight.double() * scale.double()).float()

    assert same_bits(dequantize(weight, scale), expected)


@pytest.mark.parametrize("matmul", MATMUL)
@pytest.mark.parametrize(("tokens", "columns"), [(1, 32), (7, 131), (35, 64)])
def test_the_product_is_near_float64(matmul: Op, tokens: int, columns: int) -> None:
    weight, scale = weight_and_scale(37, columns)
    x, bias = torch.randn(tokens, columns), torch.randn(37)

    actual = matmul(x, weight, scale, bias)

    expected = x.double() @ (weight.double() * scale.double()).t() + bias.double()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_NK": torch.zeros(4, 8)}, "weight_NK must be of int8"),
        ({"scale_N1": torch.ones(4)}, r"scale_N1 must be \[4, 1\]"),
        ({"scale_N1": torch.ones(4, 1).half()}, "scale_N1 must be of float32"),
        ({"x_TK": torch.zeros(2, 9)}, r"x_TK must be \[T, 8\]"),
        ({"bias_N": torch.zeros(5)}, r"bias_N must be \[4\]"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, torch.Tensor], message: str) -> None:
    weight, scale = weight_and_scale(4, 8)
    arguments = {"x_TK": torch.zeros(2, 8), "weight_NK": weight, "scale_N1": scale}

    with pytest.raises(ValueError, match=message):
        matmul_int8(**{**arguments, **change})

"""Activations: those of transformers, near float64 everywhere, and exact per element."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from quire.kernels.activations import (
    KINDS,
    activation,
    gated_activation,
    gated_activation_quantized,
)
from quire.kernels.activations.kernel import (
    activation_triton,
    gated_activation_quantized_triton,
    gated_activation_triton,
)
from quire.kernels.quantize_scaled_float8 import (
    quantize_dynamic_scaled_float8,
    quantize_static_scaled_float8,
)
from quire.kernels.swish_glu import swish_glu

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Activation = Callable[[torch.Tensor, str], torch.Tensor]
PATHS = [pytest.param(activation, id="cpu"), pytest.param(activation_triton, id="triton")]
GATED = [
    pytest.param(gated_activation, id="cpu"),
    pytest.param(gated_activation_triton, id="triton"),
]
IN_TRANSFORMERS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu_quick": "quick_gelu"}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
RELATIVE = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def oracle(x: torch.Tensor, kind: str) -> torch.Tensor:
    result: torch.Tensor = ACT2FN[IN_TRANSFORMERS.get(kind, kind)](x.double())
    return result


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, in the interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("apply", PATHS)
def test_equals_transformers_in_float64(apply: Activation, kind: str, dtype: torch.dtype) -> None:
    """From the tails, where a difference of near numbers would lose everything, to tiny values."""
    magnitude = torch.logspace(-6, 1.7, 700)
    x = torch.cat((-magnitude, magnitude, torch.zeros(1)))[None].to(dtype)

    out = apply(x, kind)

    assert out.dtype == dtype
    # GELU's tail is a difference in float64 too, and below the least normal bits are lost.
    torch.testing.assert_close(out.double(), oracle(x, kind), atol=1e-7, rtol=RELATIVE[dtype])


def test_gelu_keeps_its_relative_precision_in_the_tail() -> None:
    x = torch.linspace(-8.0, 0.0, 500)[None]

    expected = 0.5 * x.double() * torch.special.erfc(x.double().neg() * 0.5**0.5)

    torch.testing.assert_close(activation(x, "gelu").double(), expected, atol=0, rtol=6e-6)


@pytest.mark.parametrize("dtype", DTYPES[::2], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_element_has_the_same_bits_at_every_place(
    kind: str, dtype: torch.dtype, threads: int, same_bits: SameBits
) -> None:
    x = (torch.randn(1, 40_000) * 3).to(dtype)
    full = activation(x, kind)

    for start in (1, 3, 17, 39_000):
        for count in (1, 2, 7, 15, 33, 999):
            part = x[:, start : start + count].contiguous()
            assert same_bits(activation(part, kind), full[:, start : start + count])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gated", GATED)
def test_gated_is_the_activation_times_up(gated: Activation, kind: str) -> None:
    gate_up = torch.randn(3, 2 * 77, generator=torch.Generator().manual_seed(1)) * 2

    out = gated(gate_up, kind)

    gate, up = gate_up.double().chunk(2, 1)
    torch.testing.assert_close(out.double(), oracle(gate, kind) * up, atol=1e-7, rtol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_silu_is_swish_glu(dtype: torch.dtype) -> None:
    gate_up = torch.randn(5, 2 * 300).to(dtype)
    gate, up = gate_up.double().chunk(2, 1)

    for out in (gated_activation(gate_up, "silu"), swish_glu(gate_up)):
        torch.testing.assert_close(out.double(), F.silu(gate) * up, atol=1e-6, rtol=RELATIVE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("gated", "quantized"),
    [
        pytest.param(gated_activation, gated_activation_quantized, id="cpu"),
        pytest.param(gated_activation_triton, gated_activation_quantized_triton, id="triton"),
    ],
)
def test_quantized_is_the_activation_then_the_quantization(
    gated: Activation,
    quantized: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    dtype: torch.dtype,
    same_bits: SameBits,
) -> None:
    gate_up = torch.randn(4, 2 * 4500).to(dtype)
    gate_up[1] = 0.0
    whole = gated(gate_up, "gelu_tanh")
    scale = torch.tensor([0.002])

    dynamic, scales = quantized(gate_up, "gelu_tanh")
    static, same_scale = quantized(gate_up, "gelu_tanh", scale)

    expected, expected_scales = quantize_dynamic_scaled_float8(whole)
    assert same_bits(scales, expected_scales)
    assert torch.equal(dynamic.view(torch.uint8), expected.view(torch.uint8))
    expected = quantize_static_scaled_float8(whole, scale)
    assert torch.equal(static.view(torch.uint8), expected.view(torch.uint8))
    assert same_scale is scale


@pytest.mark.parametrize("run", [activation, activation_triton, gated_activation])
def test_nothing_gives_nothing(run: Activation) -> None:
    assert run(torch.empty(0, 8), "gelu").shape[0] == 0
    assert run(torch.empty(3, 0), "gelu").shape == (3, 0)


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="kind must be one of silu, gelu, .* got 'swish'"):
        activation(torch.ones(2, 2), "swish")
    with pytest.raises(ValueError, match="kind must be one of"):
        gated_activation(torch.ones(2, 2), "")
    with pytest.raises(ValueError, match=r"x_TF must be \[T, F\], got \[2\]"):
        activation(torch.ones(2), "silu")
    with pytest.raises(ValueError, match="x_TF must be of bfloat16 or float16 or float32, got"):
        activation(torch.ones(2, 2, dtype=torch.float64), "silu")
    for run in (gated_activation, gated_activation_quantized):
        with pytest.raises(ValueError, match=r"gate_up_T2F must be \[T, 2F\], got \[3, 7\]"):
            run(torch.ones(3, 7), "silu")
    with pytest.raises(ValueError, match=r"gate_up_T2F must have columns, got \[3, 0\]"):
        gated_activation_quantized(torch.ones(3, 0), "silu")
    with pytest.raises(ValueError, match=r"scale must be \[\], \[1\] or \[1, 1\], got \[2\]"):
        gated_activation_quantized(torch.ones(3, 2), "silu", torch.ones(2))

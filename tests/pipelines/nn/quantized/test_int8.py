"""int8 weights on a CPU: what the compiled kernels compute with, and the same bits without them."""

import pytest
import torch
from parity.packing import int8, int8_at_load

from quire.kernels.native import library
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quantized.at_load import Int8AtLoad, W8A8AtLoad
from quire.pipelines.architectures.quantized.int8 import Int8Encoding, W8A8Encoding
from quire.pipelines.nn.linear_weight import LinearWeight
from quire.pipelines.nn.weight_kinds import WEIGHT_KINDS

CPU = torch.device("cpu")
OUT = 256
pytestmark = pytest.mark.skipif(library() is None, reason="no compiled library")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def random_weight(encoding: Encoding, in_dim: int, dtype: torch.dtype) -> LinearWeight:
    numbers = torch.randn(OUT, in_dim, generator=torch.Generator().manual_seed(0))
    pack = int8 if isinstance(encoding, Int8Encoding) else int8_at_load
    return WEIGHT_KINDS[type(encoding)].from_tensors(encoding, pack(numbers)[1], dtype)


@each_dtype
@pytest.mark.parametrize("encoding", [Int8AtLoad(), Int8Encoding(), W8A8AtLoad(), W8A8Encoding()])
def test_the_compiled_kernels_compute_with_these_numbers(
    encoding: Encoding, dtype: torch.dtype
) -> None:
    weight = random_weight(encoding, 384, dtype)
    assert weight.weight_scale is not None
    x, bias = torch.randn(5, 384).to(dtype), torch.randn(OUT).to(dtype)

    assert weight.is_packed_on(CPU)
    actual = weight.prepare(bias, CPU, None)(x)

    assert actual.dtype == dtype
    seen = x.double()
    if encoding.name == "w8a8":
        scale = x.float().abs().amax(1, keepdim=True) / 127
        seen = (x.float() / scale).round().double() * scale.double()
    numbers = weight.weight.double() * weight.weight_scale
    expected = seen @ numbers.t() + bias.double()
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=epsilon, atol=1e-4)


@each_dtype
def test_w8a8_has_the_same_bits_without_the_compiled_kernels(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random_weight(W8A8Encoding(), 1300, dtype)
    x, bias = torch.randn(50, 1300).to(dtype), torch.randn(OUT).to(dtype)
    compiled = weight.prepare(bias, CPU, None)(x)

    monkeypatch.setattr("quire.kernels.w8a8.prepared.library", lambda: None)

    plain = weight.prepare(bias, CPU, None)
    assert torch.equal(plain(x), compiled)
    assert torch.equal(plain(x[7:8]), compiled[7:8])

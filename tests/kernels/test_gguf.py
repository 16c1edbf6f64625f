"""GGUF blocks: dequantized to the bits of the `gguf` package, matmuls near float64."""

from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch

from quire.kernels.gguf import dequantize_gguf, matmul_gguf
from quire.kernels.gguf.cases import SCALES, random_blocks
from quire.kernels.gguf.encodings import ENCODINGS
from quire.kernels.gguf.kernel import dequantize_gguf_triton, matmul_gguf_triton

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Dequantize = Callable[..., torch.Tensor]
Matmul = Callable[..., torch.Tensor]
DEQUANTIZE = [
    pytest.param(dequantize_gguf, id="cpu"),
    pytest.param(dequantize_gguf_triton, id="triton"),
]
MATMUL = [pytest.param(matmul_gguf, id="cpu"), pytest.param(matmul_gguf_triton, id="triton")]


def oracle(weight_bytes: torch.Tensor, encoding: str) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[encoding]
    return torch.from_numpy(gguf.quants.dequantize(weight_bytes.numpy(), kind))


def blocks_with(
    encoding: str, in_features: int, scales: list[float], seed: int = 3
) -> torch.Tensor:
    """One row of random bytes for each pair of a scale and a minimum of `scales`."""
    layout = ENCODINGS[encoding]
    offsets, _ = SCALES[encoding]
    halves = torch.tensor(scales).half()[:, None].view(torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    rows = random_blocks(len(scales), in_features, encoding, generator)
    blocks = rows.view(len(scales), -1, layout.block_size)
    for place, offset in enumerate(offsets):
        blocks[..., offset : offset + 2] = halves.roll(place, 0)[:, None]
    return rows


def test_layouts_are_those_of_gguf() -> None:
    for encoding, layout in ENCODINGS.items():
        expected = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding]]
        assert (layout.elements_per_block, layout.block_size) == expected


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dequantize", DEQUANTIZE)
def test_dequantizes_to_the_bits_of_gguf(
    dequantize: Dequantize, encoding: str, same_bits: SameBits
) -> None:
    """Also for scales that are negative, zero, subnormal and the greatest."""
    scales = [0.01, -0.3, 0.0, -0.0, 6e-8, -3e-5, 65504.0, 1.0]
    rows = blocks_with(encoding, 512, scales)

    assert same_bits(dequantize(rows, encoding), oracle(rows, encoding))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x0F, 0xF0])
def test_extreme_bytes_dequantize_to_the_bits_of_gguf(
    encoding: str, byte: int, same_bits: SameBits
) -> None:
    rows = torch.full((2, ENCODINGS[encoding].block_size * 2), byte, dtype=torch.uint8)
    blocks = rows.view(4, -1)
    for offset in SCALES[encoding][0]:
        blocks[:, offset : offset + 2] = torch.tensor([0.125]).half().view(torch.uint8)

    for dequantize in (dequantize_gguf, dequantize_gguf_triton):
        assert same_bits(dequantize(rows, encoding), oracle(rows, encoding))


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_weights_that_gguf_quantized_come_back(encoding: str) -> None:
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(4))
    kind = gguf.GGMLQuantizationType[encoding]
    stored = torch.from_numpy(gguf.quants.quantize(weight.numpy(), kind))

    restored = dequantize_gguf(stored, encoding)

    steps = {"Q4_0": 8, "Q4_1": 7, "Q5_0": 16, "Q5_1": 15, "Q8_0": 127}[encoding]
    step = weight.unflatten(1, (3, 32)).abs().amax(-1) / steps
    error = (restored - weight).unflatten(1, (3, 32)).abs().amax(-1)
    assert (error <= 1.01 * step).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("matmul", MATMUL)
def test_matmul_is_near_float64(matmul: Matmul, encoding: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 256, generator=generator).to(dtype)
    rows = random_blocks(5, 256, encoding, generator)

    actual = matmul(x, rows, encoding)

    assert actual.dtype == dtype
    expected = x.double() @ oracle(rows, encoding).to(dtype).double().t()
    limit = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(actual.double(), expected, atol=limit, rtol=limit)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_row_has_the_same_bits_in_every_batch(encoding: str, same_bits: SameBits) -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(66, 256, generator=generator).bfloat16()
    rows = random_blocks(5, 256, encoding, generator)
    full = matmul_gguf_triton(x, rows, encoding)

    assert same_bits(matmul_gguf_triton(x[65:], rows, encoding), full[65:])
    assert same_bits(matmul_gguf_triton(x[7:9], rows, encoding), full[7:9])


def test_blocks_need_no_alignment(same_bits: SameBits) -> None:
    """As slices of a mapped file have none."""
    rows = random_blocks(3, 64, "Q4_0", torch.Generator().manual_seed(7))
    storage = torch.empty(rows.numel() + 1, dtype=torch.uint8)
    shifted = storage[1:].view_as(rows).copy_(rows)

    assert shifted.data_ptr() % 2
    for dequantize in (dequantize_gguf, dequantize_gguf_triton):
        assert same_bits(dequantize(shifted, "Q4_0"), oracle(rows, "Q4_0"))


@pytest.mark.parametrize("matmul", MATMUL)
def test_no_rows_give_no_rows(matmul: Matmul) -> None:
    rows = random_blocks(5, 256, "Q6_K", torch.Generator())

    assert matmul(torch.empty(0, 256), rows, "Q6_K").shape == (0, 5)
    assert matmul(torch.ones(2, 256), rows[:0], "Q6_K").shape == (2, 0)
    assert dequantize_gguf(rows[:0], "Q6_K").shape == (0, 256)
    assert dequantize_gguf_triton(rows[:0], "Q6_K").shape == (0, 256)


def test_infinite_scales_stay_infinite() -> None:
    rows = blocks_with("Q8_0", 32, [float("inf")])

    with np.errstate(invalid="ignore"):
        for dequantize in (dequantize_gguf, dequantize_gguf_triton):
            torch.testing.assert_close(
                dequantize(rows, "Q8_0"), oracle(rows, "Q8_0"), rtol=0, atol=0, equal_nan=True
            )


def test_wrong_inputs_are_named() -> None:
    x, rows = torch.ones(3, 64), torch.zeros(5, 36, dtype=torch.uint8)
    with pytest.raises(ValueError, match="encoding must be one of Q4_0, .*, Q6_K, .*got 'Q8_1'"):
        matmul_gguf(x, rows, "Q8_1")
    with pytest.raises(ValueError, match="weight_bytes must be of uint8, got int8"):
        matmul_gguf(x, rows.char(), "Q4_0")
    with pytest.raises(ValueError, match="whole Q8_0 blocks of 34 bytes, got 36 bytes"):
        dequantize_gguf(rows, "Q8_0")
    with pytest.raises(ValueError, match=r"weight_bytes must be \[N, bytes\], got \[36\]"):
        dequantize_gguf(rows[0], "Q4_0")
    with pytest.raises(ValueError, match="weight_bytes must be contiguous"):
        dequantize_gguf(rows.t().contiguous().t(), "Q4_0")
    with pytest.raises(ValueError, match="out_dtype must be bfloat16 or .*, got float64"):
        dequantize_gguf(rows, "Q4_0", torch.float64)
    with pytest.raises(ValueError, match=r"x_TK must have at least one column, got \[3, 0\]"):
        matmul_gguf(x[:, :0].contiguous(), rows[:, :0].contiguous(), "Q4_0")
    with pytest.raises(ValueError, match=r"x_TK must be \[T, 64\], got \[3, 32\]"):
        matmul_gguf(x[:, :32].contiguous(), rows, "Q4_0")
    with pytest.raises(ValueError, match="x_TK must be of bfloat16 or .*, got float64"):
        matmul_gguf(x.double(), rows, "Q4_0")
    with pytest.raises(ValueError, match=r"bias_N must be \[5\], got \[4\]"):
        matmul_gguf(x, rows, "Q4_0", torch.ones(4))
    with pytest.raises(ValueError, match="bias_N must be of float32, got float16"):
        matmul_gguf(x, rows, "Q4_0", torch.ones(5).half())

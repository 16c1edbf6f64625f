"""MXFP4 and NVFP4: equal to transformers' and gguf's decoders, and to torch's scale dtypes."""

from collections.abc import Callable
from typing import Any

import gguf
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from quire.kernels.fp4 import dequantize_mxfp4, dequantize_nvfp4, matmul_mxfp4, matmul_nvfp4
from quire.kernels.fp4.cases import random_weight
from quire.kernels.fp4.kernel import (
    dequantize_mxfp4_triton,
    dequantize_nvfp4_triton,
    matmul_mxfp4_triton,
    matmul_nvfp4_triton,
)

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Op = Callable[..., torch.Tensor]
DEQUANTIZE_MX = [
    pytest.param(dequantize_mxfp4, id="cpu"),
    pytest.param(dequantize_mxfp4_triton, id="triton"),
]
DEQUANTIZE_NV = [
    pytest.param(dequantize_nvfp4, id="cpu"),
    pytest.param(dequantize_nvfp4_triton, id="triton"),
]
ONE = torch.tensor(1.0)


def every_byte(rows: int) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).repeat(rows, 1)


@pytest.mark.parametrize("dequantize", DEQUANTIZE_MX)
def test_mxfp4_equals_transformers(dequantize: Op, same_bits: SameBits) -> None:
    """Every byte under every scale whose products are finite and normal."""
    weight = every_byte(16)
    scale = torch.arange(2, 2 + 16 * 15).clamp(max=251).view(16, 15).to(torch.uint8)
    scale = torch.cat((scale, scale[:, :1]), 1)

    actual = dequantize(weight, scale)

    blocks = weight.view(1, 16, 16, 16)
    expected = convert_moe_packed_tensors(blocks, scale[None], dtype=torch.float32)
    assert same_bits(actual, expected[0].t())


@pytest.mark.parametrize("dequantize", DEQUANTIZE_MX)
def test_mxfp4_scales_are_those_of_e8m0(dequantize: Op) -> None:
    """All 256, with the subnormal 2^-127 and NaN."""
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
    weight = torch.full((16, 256), 0xA2, dtype=torch.uint8)
    expected = codes.view(torch.float8_e8m0fnu).float()

    for scale in (codes, codes.view(torch.float8_e8m0fnu)):
        values = dequantize(weight, scale).view(16, 16, 16, 2)
        for number, sign in ((0, 1.0), (1, -1.0)):
            torch.testing.assert_close(
                values[..., number],
                (sign * expected)[..., None].expand(-1, -1, 16),
                rtol=0,
                atol=0,
                equal_nan=True,
            )


@pytest.mark.parametrize("dequantize", DEQUANTIZE_NV)
def test_nvfp4_equals_gguf(dequantize: Op) -> None:
    """Every byte; every positive scale. gguf has blocks of 4 scales, then 4 * 8 bytes."""
    weight = every_byte(4)
    codes = torch.arange(127, dtype=torch.uint8)
    codes = torch.cat((codes, codes[:1])).view(4, 32)

    actual = dequantize(weight, codes.view(torch.float8_e4m3fn), ONE)

    # Low nibbles are the first 8 of 16 numbers there, and even numbers here.
    numbers = torch.stack((weight & 15, weight >> 4), -1).view(4, 32, 2, 8)
    stored = (numbers[:, :, 0] | numbers[:, :, 1] << 4).view(4, 8, 32)
    blocks = torch.cat((codes.view(4, 8, 4), stored), -1).view(4, -1).contiguous()
    expected = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.NVFP4)
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=0, atol=0)


@pytest.mark.parametrize("dequantize", DEQUANTIZE_NV)
def test_nvfp4_scales_are_those_of_e4m3(dequantize: Op) -> None:
    """All 256, with negative ones, subnormals and NaN, times the scale of the weight."""
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
    weight = torch.full((16, 128), 0x77, dtype=torch.uint8)
    scale_2 = torch.tensor([0.003])
    scale = codes.view(torch.float8_e4m3fn)

    values = dequantize(weight, scale, scale_2).view(16, 16, 16)

    expected = 6.0 * (scale.float() * scale_2)
    torch.testing.assert_close(
        values, expected[..., None].expand_as(values), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("matmul", "dequantize"),
    [
        pytest.param(matmul_mxfp4, dequantize_mxfp4, id="mxfp4-cpu"),
        pytest.param(matmul_mxfp4_triton, dequantize_mxfp4, id="mxfp4-triton"),
        pytest.param(matmul_nvfp4, dequantize_nvfp4, id="nvfp4-cpu"),
        pytest.param(matmul_nvfp4_triton, dequantize_nvfp4, id="nvfp4-triton"),
    ],
)
def test_matmul_is_near_float64(matmul: Op, dequantize: Op, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    is_nvidia = dequantize is dequantize_nvfp4
    tensors: dict[str, Any] = random_weight(9, 96, is_nvidia, generator)
    x = torch.randn(3, 96, generator=generator).to(dtype)
    bias = torch.randn(9, generator=generator).to(dtype)

    actual = matmul(x, **tensors, bias_N=bias)

    assert actual.dtype == dtype
    weight = dequantize(**tensors).to(dtype).double()
    limit = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    expected = x.double() @ weight.t() + bias.double()
    torch.testing.assert_close(actual.double(), expected, atol=limit, rtol=limit)


def test_nothing_gives_nothing() -> None:
    for is_nvidia, matmuls in (
        (False, (matmul_mxfp4, matmul_mxfp4_triton)),
        (True, (matmul_nvfp4, matmul_nvfp4_triton)),
    ):
        tensors: dict[str, Any] = random_weight(5, 32, is_nvidia, torch.Generator())
        none = {k: v[:0] if v.ndim else v for k, v in tensors.items()}
        for matmul in matmuls:
            assert matmul(torch.empty(0, 32), **tensors).shape == (0, 5)
            assert matmul(torch.ones(2, 32), **none).shape == (2, 0)


def test_wrong_inputs_are_named() -> None:
    weight = torch.zeros(5, 32, dtype=torch.uint8)
    mx_scale = torch.zeros(5, 2, dtype=torch.uint8)
    nv_scale = torch.zeros(5, 4).to(torch.float8_e4m3fn)
    x = torch.ones(3, 64)
    with pytest.raises(ValueError, match="weight must be of uint8, got int8"):
        dequantize_mxfp4(weight.char(), mx_scale)
    with pytest.raises(ValueError, match="weight must have rows of whole groups of 16 bytes"):
        dequantize_mxfp4(weight[:, :24].contiguous(), mx_scale)
    with pytest.raises(ValueError, match=r"weight_scale must be \[5, 2\], got \[5, 4\]"):
        dequantize_mxfp4(weight, nv_scale)
    with pytest.raises(ValueError, match="weight_scale must be of uint8 or float8_e8m0fnu"):
        matmul_mxfp4(x, weight, mx_scale.half())
    with pytest.raises(ValueError, match=r"weight_scale must be \[5, 4\], got \[5, 2\]"):
        dequantize_nvfp4(weight, mx_scale, ONE)
    with pytest.raises(ValueError, match="weight_scale must be of float8_e4m3fn, got float32"):
        dequantize_nvfp4(weight, nv_scale.float(), ONE)
    with pytest.raises(ValueError, match=r"weight_scale_2 must be one number, got \[2\]"):
        matmul_nvfp4(x, weight, nv_scale, torch.ones(2))
    with pytest.raises(ValueError, match="weight_scale_2 must be of float32, got float16"):
        matmul_nvfp4(x, weight, nv_scale, ONE.half())
    with pytest.raises(ValueError, match=r"x_TK must be \[T, 64\], got \[3, 32\]"):
        matmul_nvfp4(x[:, :32].contiguous(), weight, nv_scale, ONE)
    with pytest.raises(ValueError, match="out_dtype must be bfloat16 or .*, got int8"):
        dequantize_mxfp4(weight, mx_scale, torch.int8)
    with pytest.raises(ValueError, match="out_dtype must be bfloat16 or .*, got int8"):
        dequantize_nvfp4(weight, nv_scale, ONE, torch.int8)

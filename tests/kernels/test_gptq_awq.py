"""GPTQ and AWQ: equal to a decoder written number by number from the formats."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from quire.kernels.gptq_awq import (
    dequantize_awq,
    dequantize_gptq,
    matmul_awq,
    matmul_gptq,
    sort_gptq_groups,
)
from quire.kernels.gptq_awq.cases import random_layer
from quire.kernels.gptq_awq.kernel import (
    dequantize_awq_triton,
    dequantize_gptq_triton,
    matmul_awq_triton,
    matmul_gptq_triton,
)

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Op = Callable[..., torch.Tensor]
DEQUANTIZE_GPTQ = [
    pytest.param(dequantize_gptq, id="cpu"),
    pytest.param(dequantize_gptq_triton, id="triton"),
]
DEQUANTIZE_AWQ = [
    pytest.param(dequantize_awq, id="cpu"),
    pytest.param(dequantize_awq_triton, id="triton"),
]
GROUPS = ((32, 96), (64, 192), (128, 256), (-1, 72))
"""(group size, K)."""


def as_python(words: torch.Tensor) -> list[list[int]]:
    return [[word & 0xFFFFFFFF for word in row] for row in words.tolist()]


def gptq_oracle(layer: dict[str, Any], g_idx: list[int], zero_offset: int = 1) -> torch.Tensor:
    """AutoGPTQ: number k of a column is nibble k % 8 of word k // 8, zeros likewise over columns;
    the zero point is the stored one plus `zero_offset`, in 4 bits."""
    qweight, scales = as_python(layer["qweight"]), layer["scales"].float().numpy()
    qzeros = None if layer["qzeros"] is None else as_python(layer["qzeros"])
    weight = np.zeros((len(qweight[0]), len(g_idx)), dtype=np.float32)
    for k, group in enumerate(g_idx):
        for column in range(len(qweight[0])):
            number = qweight[k // 8][column] >> (4 * (k % 8)) & 0xF
            zero = 8
            if qzeros is not None:
                zero = qzeros[group][column // 8] >> (4 * (column % 8)) & 0xF
                zero = (zero + zero_offset) & 0xF
            weight[column, k] = scales[group, column] * np.float32(number - zero)
    return torch.from_numpy(weight)


def awq_oracle(layer: dict[str, Any], group_size: int) -> torch.Tensor:
    """AutoAWQ packs columns [0, 2, 4, 6, 1, 3, 5, 7] of each 8, from the lowest nibble."""
    qweight, qzeros = as_python(layer["qweight"]), as_python(layer["qzeros"])
    scales = layer["scales"].float().numpy()
    in_features, words = len(qweight), len(qweight[0])
    weight = np.zeros((words * 8, in_features), dtype=np.float32)
    for k in range(in_features):
        group = 0 if group_size == -1 else k // group_size
        for word in range(words):
            for nibble, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                number = qweight[k][word] >> (4 * nibble) & 0xF
                zero = qzeros[group][word] >> (4 * nibble) & 0xF
                n = word * 8 + column
                weight[n, k] = scales[group, n] * np.float32(number - zero)
    return torch.from_numpy(weight)


def groups_in_order(group_size: int, in_features: int) -> list[int]:
    return [0 if group_size == -1 else k // group_size for k in range(in_features)]


@pytest.mark.parametrize(("group_size", "in_features"), GROUPS)
@pytest.mark.parametrize("zero_offset", [0, 1])
@pytest.mark.parametrize("dequantize", DEQUANTIZE_GPTQ)
def test_gptq_dequantizes_to_the_bits_of_the_format(
    dequantize: Op, zero_offset: int, group_size: int, in_features: int, same_bits: SameBits
) -> None:
    layer = random_layer(40, in_features, group_size, torch.Generator().manual_seed(1))

    actual = dequantize(**layer, zero_offset=zero_offset)

    expected = gptq_oracle(layer, groups_in_order(group_size, in_features), zero_offset)
    assert same_bits(actual, expected)


@pytest.mark.parametrize("dequantize", DEQUANTIZE_GPTQ)
def test_symmetric_gptq_needs_no_zeros(dequantize: Op, same_bits: SameBits) -> None:
    layer = random_layer(13, 64, 32, torch.Generator().manual_seed(2), dtype=torch.bfloat16)
    layer["qzeros"] = None

    assert same_bits(dequantize(**layer), gptq_oracle(layer, groups_in_order(32, 64)))


@pytest.mark.parametrize("dequantize", DEQUANTIZE_GPTQ)
def test_a_zero_point_of_zero_is_stored_as_fifteen(dequantize: Op) -> None:
    layer = random_layer(8, 32, 32, torch.Generator().manual_seed(3))
    layer["qzeros"] = torch.full((1, 1), -1, dtype=torch.int32)
    layer["qweight"] = torch.zeros(4, 8, dtype=torch.int32)

    assert dequantize(**layer).eq(0).all()


@pytest.mark.parametrize("matmul", [matmul_gptq, matmul_gptq_triton])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gptq_in_activation_order_is_near_float64(matmul: Op, dtype: torch.dtype) -> None:
    """A checkpoint whose rows belong to groups in no order, as its g_idx says."""
    generator = torch.Generator().manual_seed(4)
    layer = random_layer(24, 128, 32, generator)
    g_idx = (torch.randperm(128, generator=generator) // 32).int()
    x = torch.randn(3, 128, generator=generator).to(dtype)
    bias = torch.randn(24, generator=generator).to(dtype)
    dense = gptq_oracle(layer, g_idx.tolist())
    sorted_weight, perm_idx = sort_gptq_groups(layer["qweight"], g_idx)
    ordered = layer | {"qweight": sorted_weight, "perm_idx": perm_idx}

    actual = matmul(x, **ordered, bias_N=bias)

    limit = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    expected = x.double() @ dense.to(dtype).double().t() + bias.double()
    torch.testing.assert_close(actual.double(), expected, atol=limit, rtol=limit)
    assert torch.equal(dequantize_gptq(**ordered), dense)
    assert torch.equal(dequantize_gptq_triton(**ordered), dense)


def test_sorting_groups_that_are_in_order_changes_nothing() -> None:
    qweight = random_layer(5, 64, 32, torch.Generator().manual_seed(5))["qweight"]
    g_idx = torch.arange(64, dtype=torch.int32) // 32

    same, perm_idx = sort_gptq_groups(qweight, g_idx)

    assert torch.equal(same, qweight)
    assert torch.equal(perm_idx, torch.arange(64, dtype=torch.int32))


@pytest.mark.parametrize(("group_size", "in_features"), GROUPS)
@pytest.mark.parametrize("dequantize", DEQUANTIZE_AWQ)
def test_awq_dequantizes_to_the_bits_of_the_format(
    dequantize: Op, group_size: int, in_features: int, same_bits: SameBits
) -> None:
    generator = torch.Generator().manual_seed(6)
    layer = random_layer(40, in_features, group_size, generator, is_awq=True)

    assert same_bits(dequantize(**layer), awq_oracle(layer, group_size))


@pytest.mark.parametrize("matmul", [matmul_awq, matmul_awq_triton])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_awq_is_near_float64(matmul: Op, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    layer = random_layer(24, 128, 64, generator, is_awq=True)
    x = torch.randn(3, 128, generator=generator).to(dtype)
    bias = torch.randn(24, generator=generator).to(dtype)

    actual = matmul(x, **layer, bias_N=bias)

    limit = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    expected = x.double() @ awq_oracle(layer, 64).to(dtype).double().t() + bias.double()
    torch.testing.assert_close(actual.double(), expected, atol=limit, rtol=limit)


@pytest.mark.parametrize("is_awq", [False, True])
def test_no_rows_and_no_columns_give_none(is_awq: bool) -> None:
    layer, none = (random_layer(n, 64, 32, torch.Generator(), is_awq=is_awq) for n in (8, 0))
    for matmul in (matmul_awq, matmul_awq_triton) if is_awq else (matmul_gptq, matmul_gptq_triton):
        assert matmul(torch.empty(0, 64), **layer).shape == (0, 8)
        assert matmul(torch.ones(2, 64), **none).shape == (2, 0)


def test_wrong_gptq_inputs_are_named() -> None:
    layer = random_layer(16, 64, 32, torch.Generator())
    x, perm_idx = torch.ones(3, 64), torch.arange(64, dtype=torch.int32)

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=match):
            matmul_gptq(**({"x_TK": x} | layer | changes))

    refused("qweight must be of int32, got int64", qweight=layer["qweight"].long())
    refused(r"group_size must be one of \(32, 64, 128, -1\), got 16", group_size=16)
    refused("group_size 128 must divide K, got K = 64", group_size=128)
    refused("qweight must have at least one row of K, got none", qweight=layer["qweight"][:0])
    refused(r"qzeros must be \[2, 2\], got \[1, 2\]", qzeros=layer["qzeros"][:1])
    refused(r"scales must be \[1, 16\], got \[2, 16\]", group_size=-1, qzeros=None)
    refused("scales must be of bfloat16 or .*, got float64", scales=layer["scales"].double())
    refused(r"perm_idx must be \[64\], got \[63\]", perm_idx=perm_idx[1:])
    refused("perm_idx must be of int32, got int64", perm_idx=perm_idx.long())
    refused("zero_offset must be from 0 to 1, got 2", zero_offset=2)
    refused(r"x_TK must be \[T, 64\], got \[3, 32\]", x_TK=torch.ones(3, 32))
    refused(r"bias_N must be \[16\], got \[15\]", bias_N=torch.ones(15))
    refused(
        "qweight must have a multiple of 8 columns, got 15", qweight=layer["qweight"][:, 1:].clone()
    )
    with pytest.raises(ValueError, match="out_dtype must be bfloat16 or .*, got int8"):
        dequantize_gptq(**layer, out_dtype=torch.int8)


def test_wrong_group_orders_are_named() -> None:
    qweight = random_layer(8, 64, 32, torch.Generator())["qweight"]
    g_idx = torch.arange(64, dtype=torch.int32) // 32
    with pytest.raises(ValueError, match="qweight must be of int32, got float32"):
        sort_gptq_groups(qweight.float(), g_idx)
    with pytest.raises(ValueError, match=r"g_idx must be \[64\], got \[63\]"):
        sort_gptq_groups(qweight, g_idx[1:])
    with pytest.raises(
        ValueError, match=r"as many rows in each group, got groups of \[1, 31, 32\]"
    ):
        sort_gptq_groups(qweight, torch.cat((torch.tensor([2], dtype=torch.int32), g_idx[1:])))
    with pytest.raises(ValueError, match="g_idx must be from 0, got -1"):
        sort_gptq_groups(qweight, g_idx - 1)


def test_wrong_awq_inputs_are_named() -> None:
    layer = random_layer(16, 64, 32, torch.Generator(), is_awq=True)

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=match):
            matmul_awq(**({"x_TK": torch.ones(3, 64)} | layer | changes))

    refused("qweight must be of int32, got float32", qweight=layer["qweight"].float())
    refused("group_size must be one of", group_size=0)
    refused("qweight must have at least one row of K, got none", qweight=layer["qweight"][:0])
    refused("group_size 128 must divide K, got K = 64", group_size=128)
    refused(r"qzeros must be \[2, 2\], got \[1, 2\]", qzeros=layer["qzeros"][:1])
    refused(r"scales must be \[2, 16\], got \[2, 15\]", scales=layer["scales"][:, 1:].clone())
    refused(r"x_TK must be \[T, 64\], got \[3, 32\]", x_TK=torch.ones(3, 32))
    refused("bias_N must be of float32, got float16", bias_N=torch.ones(16).half())
    with pytest.raises(ValueError, match="out_dtype must be bfloat16 or .*, got int8"):
        dequantize_awq(**layer, out_dtype=torch.int8)

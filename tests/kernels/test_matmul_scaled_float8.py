"""Scaled fp8 products: float64, torch._scaled_mm, exact rows, and the projection into the cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

from quire.kernels.cases import Case
from quire.kernels.fused_qkv_ragged_matmul_scaled_float8 import (
    fused_qkv_ragged_matmul_scaled_float8,
)
from quire.kernels.fused_qkv_ragged_matmul_scaled_float8.cases import OPERATIONS as FUSED
from quire.kernels.fused_qkv_ragged_matmul_scaled_float8.kernel import (
    fused_qkv_ragged_matmul_scaled_float8_triton,
)
from quire.kernels.matmul_scaled_float8 import (
    check_device,
    dynamic_scaled_matmul,
    matmul_static_scaled_float8,
)
from quire.kernels.matmul_scaled_float8.cases import DYNAMIC_SMALL, Scaling, matmul_case
from quire.kernels.matmul_scaled_float8.kernel import (
    TILES,
    dynamic_scaled_matmul_triton,
    matmul_static_scaled_float8_triton,
)

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
Matmul = Callable[..., torch.Tensor]
DYNAMIC = [
    pytest.param(dynamic_scaled_matmul, id="cpu"),
    pytest.param(dynamic_scaled_matmul_triton, id="triton"),
]
STATIC = [
    pytest.param(matmul_static_scaled_float8, id="cpu"),
    pytest.param(matmul_static_scaled_float8_triton, id="triton"),
]
FUSED_PATHS = [
    pytest.param(fused_qkv_ragged_matmul_scaled_float8, id="cpu"),
    pytest.param(fused_qkv_ragged_matmul_scaled_float8_triton, id="triton"),
]


def inputs_of(case: Case, seed: int = 1) -> dict[str, Any]:
    return case.build(CPU, torch.Generator().manual_seed(seed))


def wide(stored: torch.Tensor, scales: torch.Tensor, block_rows: int) -> torch.Tensor:
    """stored * scale in float64; transformers' own for blocks."""
    if scales.numel() in (1, stored.shape[0]) and 1 in scales.shape:
        return stored.double() * scales.view(-1, 1).double()
    return _dequantize_fp8_weight(stored, scales, [block_rows, 128], torch.float64)


def expected_product(inputs: dict[str, Any]) -> torch.Tensor:
    bias = inputs["bias_N"]
    a = wide(inputs["a_MK"], inputs["a_scales"], 1)
    b = wide(inputs["b_NK"], inputs["b_scales"], 128)
    return a @ b.t() + (0 if bias is None else bias.double())


@pytest.mark.parametrize("case", DYNAMIC_SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("matmul", DYNAMIC)
def test_is_near_float64(matmul: Matmul, case: Case) -> None:
    inputs = inputs_of(case)

    y = matmul(**inputs)

    assert y.dtype == inputs["out_type"]
    expected = expected_product(inputs)
    torch.testing.assert_close(y.double(), expected, atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("scaling", ["one", "row", "column"])
@pytest.mark.parametrize("matmul", DYNAMIC)
def test_equals_torch(matmul: Matmul, scaling: Scaling) -> None:
    """torch wants sizes in multiples of 16."""
    inputs = inputs_of(matmul_case((17, 48, 160), (scaling, scaling)))
    expected = torch._scaled_mm(
        inputs["a_MK"],
        inputs["b_NK"].t(),
        inputs["a_scales"].view(-1, 1),
        inputs["b_scales"].view(1, -1),
        out_dtype=torch.bfloat16,
    )

    torch.testing.assert_close(matmul(**inputs), expected, atol=1e-4, rtol=2**-7)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("matmul", STATIC)
def test_static_scales_are_one_number_of_any_shape(matmul: Matmul, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(n, 50, generator=generator).to(FP8) for n in (4, 9))
    scales = torch.full(shape, 0.25), torch.full(shape, 0.5)
    bias = torch.randn(9, generator=generator).half()

    y = matmul(x, weight, *scales, out_type=torch.float16, bias_N=bias)

    expected = x.double() @ weight.double().t() * 0.125 + bias.double()
    torch.testing.assert_close(y.double(), expected, atol=8e-3, rtol=0)


@pytest.mark.parametrize("matmul", DYNAMIC)
def test_a_block_of_columns_has_its_own_scale(matmul: Matmul) -> None:
    """Scales that are powers of two of very different size: every term is exact."""
    a, b = torch.ones(2, 300).to(FP8), torch.ones(130, 300).to(FP8)
    a_scales = torch.tensor([[1.0, 2.0**-10, 2.0**10], [0.0, 1.0, 4.0]])
    b_scales = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 0.0]])

    y = matmul(a, b, a_scales, b_scales, out_type=torch.float32)

    columns = torch.tensor([128.0, 128.0, 44.0])
    expected = (a_scales * columns) @ b_scales.t()
    assert torch.equal(y, expected.repeat_interleave(torch.tensor([128, 2]), 1))


@pytest.mark.parametrize("matmul", DYNAMIC)
def test_a_row_of_scales_that_could_be_blocks_is_blocks(matmul: Matmul) -> None:
    """Three rows of b and three blocks of columns."""
    a, b = torch.ones(2, 300).to(FP8), torch.ones(3, 300).to(FP8)
    b_scales = torch.tensor([[1.0, 2.0, 4.0]])

    y = matmul(a, b, torch.ones(2, 3), b_scales, out_type=torch.float32)

    assert torch.equal(y, torch.full((2, 3), 128.0 + 256.0 + 44.0 * 4))
    with pytest.raises(ValueError, match=r"a_scales must be \[2, 3\], as .* per block, got \[1\]"):
        dynamic_scaled_matmul(a, b, torch.ones(1), b_scales)


@pytest.mark.parametrize("scaling", ["row", "block"])
def test_triton_rows_have_the_same_bits_in_every_batch(scaling: Scaling) -> None:
    inputs = inputs_of(matmul_case((70, 40, 300), (scaling, scaling), torch.float32))
    whole = dynamic_scaled_matmul_triton(**inputs)

    for rows in (1, 33, 69):
        tail = {name: inputs[name][-rows:] for name in ("a_MK", "a_scales")}
        assert torch.equal(dynamic_scaled_matmul_triton(**inputs | tail), whole[-rows:])


@pytest.mark.parametrize("matmul", DYNAMIC)
def test_no_rows_give_no_rows(matmul: Matmul) -> None:
    y = matmul(
        torch.empty(0, 32).to(FP8), torch.ones(5, 32).to(FP8), torch.ones(0, 1), torch.ones(5, 1)
    )

    assert y.shape == (0, 5)
    assert y.dtype == torch.bfloat16


def test_every_tile_ends_where_block_scales_end() -> None:
    """Columns of one block of b, and sums promoted at every 128th column in all of them alike."""
    for tile in TILES:
        assert 128 % tile.columns == 0
        assert tile.depth == 128
        assert tile.rows % 64 == 0
        assert tile.warps % 4 == 0


def scaled_arguments(**changes: Any) -> dict[str, Any]:
    given = {
        "a_MK": torch.ones(2, 300).to(FP8),
        "b_NK": torch.ones(130, 300).to(FP8),
        "a_scales": torch.ones(2, 1),
        "b_scales": torch.ones(130, 1),
    }
    return given | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a_MK": torch.ones(2, 300)}, "a_MK must be of float8_e4m3fn, got float32"),
        ({"a_MK": torch.ones(300).to(FP8)}, r"a_MK must be \[rows, K\], got \[300\]"),
        ({"b_NK": torch.ones(130, 299).to(FP8)}, r"b_NK must be \[N, 300\], got \[130, 299\]"),
        ({"b_NK": torch.ones(300, 130).to(FP8).t()}, "b_NK must be contiguous"),
        ({"out_type": torch.float64}, "out_type must be bfloat16 or float16 or float32, got float"),
        ({"bias_N": torch.ones(130)}, "bias_N must be of bfloat16, got float32"),
        ({"bias_N": torch.ones(2).bfloat16()}, r"bias_N must be \[130\], got \[2\]"),
        (
            {"b_scales": torch.ones(1, 129)},
            r"b_scales must be one number, .*, \[1, 130\] or, per block, \[2, 3\], got \[1, 129\]",
        ),
        ({"b_scales": torch.ones(130, 1).half()}, "b_scales must be of float32, got float16"),
        ({"a_scales": torch.ones(3, 2).t()}, "a_scales must be contiguous"),
        (
            {"a_scales": torch.ones(2, 3)},
            r"a_scales must be one number, \[2, 1\] or \[1, 2\], as those of b_scales are not per bl",
        ),
        (
            {"b_scales": torch.ones(2, 3)},
            r"a_scales must be \[2, 3\], as those of b_scales are per block, got \[2, 1\]",
        ),
    ],
)
def test_wrong_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dynamic_scaled_matmul(**scaled_arguments(**changes))


@pytest.mark.parametrize("capability", [80, 86, 89, 90])
def test_a_gpu_without_fp8_is_refused(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.kernels.matmul_scaled_float8.capability_of", lambda _: capability)
    check_device("a_MK", CPU)
    if capability >= 89:
        check_device("a_MK", torch.device("cuda", 0))
        return
    with pytest.raises(ValueError, match=f"a_MK must be .* 8.9 or more, got {capability / 10}"):
        check_device("a_MK", torch.device("cuda", 0))


def test_wrong_static_scales_are_named() -> None:
    x, weight = torch.ones(2, 8).to(FP8), torch.ones(3, 8).to(FP8)
    with pytest.raises(ValueError, match=r"input_scale must be \[\], \[1\] or \[1, 1\], got \[2"):
        matmul_static_scaled_float8(x, weight, torch.ones(2, 1), torch.ones(1))
    with pytest.raises(ValueError, match="weight_scale must be of float32, got float64"):
        matmul_static_scaled_float8(x, weight, torch.ones(1), torch.ones(1).double())


@pytest.mark.parametrize("case", FUSED[0].small, ids=lambda case: case.name)
@pytest.mark.parametrize("fused", FUSED_PATHS)
def test_projection_is_near_float64(fused: Matmul, case: Case) -> None:
    """Queries are returned; keys and values are at their slots, and nothing else is written."""
    inputs = inputs_of(case)
    num_heads, (_, kv_heads, page_size, head_dim) = inputs["num_heads"], inputs["k_cache"].shape

    q_THD = fused(**inputs)

    operands = {"a_MK": inputs["x_TK"], "b_NK": inputs["wqkv_NK"], "bias_N": inputs["bias_N"]}
    scales = {"a_scales": inputs["input_scale"], "b_scales": inputs["weight_scale"]}
    expected = expected_product(operands | scales).unflatten(1, (-1, head_dim))
    assert q_THD.dtype == inputs["out_type"]
    tolerance = {"atol": case.tolerance, "rtol": case.relative}
    torch.testing.assert_close(q_THD.double(), expected[:, :num_heads], **tolerance)
    slots = inputs["batch"].slots
    parts = expected[:, num_heads:].split(kv_heads, 1)
    for name, part in zip(("k_cache", "v_cache"), parts, strict=True):
        cache = inputs[name].double()
        written = cache[slots // page_size, :, slots % page_size] * inputs[f"{name[0]}_scale"]
        torch.testing.assert_close(written, part, **tolerance)
        assert (~cache.isnan()).sum() == part.numel()


def test_wrong_projections_are_named() -> None:
    inputs = inputs_of(FUSED[0].small[0])
    for changes, message in (
        ({"num_heads": -1}, "num_heads must be at least 0, got -1"),
        ({"num_heads": 4}, r"wqkv_NK must have \(4 \+ 2 \* 2\) \* 20 rows, got 140"),
        ({"k_scale": 0.5}, "k_scale must be 1 unless k_cache is float8_e4m3fn, got 0.5"),
        ({"out_type": torch.bfloat16}, "k_cache must be of bfloat16 or float8_e4m3fn, got float32"),
        ({"weight_scale": torch.ones(7)}, r"weight_scale must be one number, \[140, 1\]"),
        (
            {"x_TK": inputs["x_TK"][:3], "input_scale": torch.ones(1)},
            "x_TK must have a row for each of the batch's 14 tokens, got 3",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fused_qkv_ragged_matmul_scaled_float8(**inputs | changes)

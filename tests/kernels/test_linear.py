"""Dense layer: near float64, and rows whose bits do not depend on the other rows."""

from collections.abc import Callable

import pytest
import torch

from quire.kernels.cases import Case
from quire.kernels.linear import prepare_linear, tile_plan
from quire.kernels.linear.cases import SERVED_CASES, SMALL_CASES
from quire.kernels.linear.cpu import in_row_counts, next_row_count
from quire.kernels.linear.kernel import linear_triton
from quire.kernels.linear.tile_plan import TilePlans

CPU = torch.device("cpu")
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
SHAPES = [(576, 192, True), (256, 704, False), (576, 1536, True), (130, 65, False)]
"""N, K and whether with bias; bfloat16 changes its order with the rows for K > 512, float32 for K >= 1536."""


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without a compiler."""
    monkeypatch.setattr("quire.kernels.linear.library", lambda: None)


@pytest.fixture(params=["installed", "no_library"])
def on_each_installation(request: pytest.FixtureRequest) -> None:
    if request.param == "no_library":
        request.getfixturevalue("no_library")


@pytest.mark.usefixtures("on_each_installation")
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("case", SMALL_CASES + SERVED_CASES[2:20:5], ids=lambda case: case.name)
def test_is_near_float64(case: Case, exact: bool) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(1))
    x, weight, bias = inputs["x_TK"], inputs["weight_NK"], inputs["bias_N"]

    y = prepare_linear(weight, bias, exact=exact)(x)

    assert y.dtype == case.dtype
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    torch.testing.assert_close(y.double(), expected, atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_triton_is_near_float64(case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(1))
    bias = inputs["bias_N"]

    y = linear_triton(**inputs)

    expected = inputs["x_TK"].double() @ inputs["weight_NK"].double().t()
    expected += 0 if bias is None else bias.double()
    torch.testing.assert_close(y.double(), expected, atol=case.tolerance, rtol=0)


@pytest.mark.usefixtures("on_each_installation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_in_every_batch(
    shape: tuple[int, int, bool], dtype: torch.dtype, threads: int, same_bits: SameBits
) -> None:
    """On inputs that cancel, where every output is rounding error, and on ordinary ones."""
    generator = torch.Generator().manual_seed(2)
    out_features, in_features, with_bias = shape
    bias = torch.randn(out_features, generator=generator).to(dtype) if with_bias else None
    x, weight = tile_plan.cancelling_inputs(300, out_features, in_features, dtype)
    for inputs in (x, torch.randn(x.shape, generator=generator).to(dtype)):
        linear = prepare_linear(weight, bias)
        together = linear(inputs)

        for rows in (1, 1, 1, 2, 3, 9, 17, 32, 33, 65, 129, 257):
            places = torch.randperm(300, generator=generator)[:rows]
            assert same_bits(linear(inputs[places]), together[places]), rows


def test_the_probe_tells_orders_apart_that_bfloat16_hides(threads: int) -> None:
    """Summed in two halves and in one go: other bits in nearly every row and column."""
    x, weight = tile_plan.cancelling_inputs(8, 64, 1024, torch.bfloat16)
    whole = x.float() @ weight.float().t()
    halves = x[:, :512].float() @ weight[:, :512].float().t()
    halves += x[:, 512:].float() @ weight[:, 512:].float().t()

    assert (x.double() @ weight.double().t()).abs().max() == 0.0
    assert (whole.bfloat16() != halves.bfloat16()).float().mean() > 0.9


def test_row_counts_of_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GEMM that sums in halves from 64 rows on, and differently for one row."""

    def changing(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[..., torch.Tensor]:
        def apply(x: torch.Tensor) -> torch.Tensor:
            parts = 1 if 1 < len(x) < 64 else 2
            width = x.shape[1] // parts
            products = [
                (x[:, at : at + width, None] * weight.t()[None, at : at + width]).sum(1)
                for at in range(0, x.shape[1], width)
            ]
            return sum(products[1:], products[0])

        return apply

    monkeypatch.setattr(tile_plan, "prepacked", changing)

    counts = TilePlans().row_counts(torch.empty(16, 64), has_bias=False)

    assert counts == (2, 4, 8, 16, 24, 32)


@pytest.mark.usefixtures("no_library")
def test_a_shape_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[tuple[int, int]] = []
    probe = tile_plan.probe

    def counted(n: int, k: int, dtype: torch.dtype, has_bias: bool) -> tuple[int, ...]:
        probed.append((n, k))
        return probe(n, k, dtype, has_bias)

    monkeypatch.setattr(tile_plan, "probe", counted)
    plans = TilePlans()
    for n, k in ((8, 4), (4, 8), (8, 4), (4, 8)):
        prepare_linear(torch.ones(n, k), plans=plans)

    assert probed == [(8, 4), (4, 8)]


@pytest.mark.parametrize("counts", [(1, 2, 4, 8, 16, 24, 32, 64, 512), (2, 32), (32,)])
def test_only_probed_row_counts_reach_the_gemm(counts: tuple[int, ...]) -> None:
    sizes: list[int] = []

    def apply(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x * 2

    run = in_row_counts(apply, 3, counts)
    for rows in range(1, 600, 7):
        x = torch.randn(rows, 3)
        assert torch.equal(run(x), x * 2)

    assert set(sizes) <= set(counts)


def test_few_rows_take_one_call_and_many_the_largest_tiles() -> None:
    counts = (2, 4, 8, 16, 24, 32, 128)

    assert [next_row_count(rows, counts) for rows in (1, 2, 3, 17, 31)] == [2, 2, 4, 24, 32]
    assert [next_row_count(rows, counts) for rows in (33, 127, 128, 500)] == [32, 32, 128, 128]


@pytest.mark.usefixtures("on_each_installation")
@pytest.mark.parametrize("exact", [True, False])
def test_no_rows_give_no_rows(exact: bool) -> None:
    linear = prepare_linear(torch.ones(5, 3), exact=exact)

    assert linear(torch.empty(0, 3)).shape == (0, 5)
    assert linear_triton(torch.empty(0, 3), torch.ones(5, 3)).shape == (0, 5)


@pytest.mark.usefixtures("no_library")
def test_another_number_of_threads_is_an_error() -> None:
    before = torch.get_num_threads()
    linear = prepare_linear(torch.ones(5, 3))
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(RuntimeError, match=f"prepared for {before} threads"):
            linear(torch.ones(2, 3))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_triton_rows_have_the_same_bits_in_every_batch(
    dtype: torch.dtype, same_bits: SameBits
) -> None:
    x, weight = tile_plan.cancelling_inputs(70, 66, 100, dtype)
    full = linear_triton(x, weight)

    for rows in (1, 33, 69):
        assert same_bits(linear_triton(x[-rows:].contiguous(), weight), full[-rows:])


@pytest.mark.usefixtures("on_each_installation")
def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"weight must be .* got \(5, 3\) of torch.float64"):
        prepare_linear(torch.ones(5, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"bias must be \[5\] of torch.float32, got \(3,\)"):
        prepare_linear(torch.ones(5, 3), torch.ones(3))
    with pytest.raises(ValueError, match="bias must be on cpu, got meta"):
        prepare_linear(torch.ones(5, 3), torch.ones(5, device="meta"))
    linear = prepare_linear(torch.ones(5, 3))
    for wrong in (torch.ones(2, 4), torch.ones(3), torch.ones(2, 3, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"x must be \[T, 3\] of torch.float32"):
            linear(wrong)

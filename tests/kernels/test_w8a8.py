"""int8 times int8: rows quantized as float64 says, and the same bits by every way of computing."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.kernels.linear.cpu_native import TYPE_CODES, CompiledLinear, int8_matrix
from quire.kernels.native import InstructionSet, library
from quire.kernels.w8a8 import MAX_FEATURES, matmul_w8a8, quantize_rows_int8
from quire.kernels.w8a8.kernel import matmul_w8a8_triton, quantize_rows_int8_triton
from quire.kernels.w8a8.prepared import prepare_w8a8

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Op = Callable[..., torch.Tensor]
NATIVE = library()
SETS = [] if NATIVE is None else [s for s in InstructionSet if s <= NATIVE.linear_instruction_set]
each_set = pytest.mark.parametrize("instruction_set", SETS, ids=lambda s: s.name.lower())
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
QUANTIZE = [
    pytest.param(quantize_rows_int8, id="torch"),
    pytest.param(quantize_rows_int8_triton, id="triton"),
]


class Layer:
    """Random weights with -128 among them, and rows of x of every size."""

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        shape = (out_features, in_features)
        self.weight = torch.randint(-128, 128, shape, dtype=torch.int8, generator=self.generator)
        self.scale = (torch.rand(out_features, 1, generator=self.generator) + 0.5) / 1000
        self.bias = torch.randn(out_features, generator=self.generator).to(dtype)
        self.dtype = dtype

    def inputs(self, rows: int) -> torch.Tensor:
        size = torch.exp2(torch.randint(-20, 20, (rows, 1), generator=self.generator).float())
        x = torch.randn(rows, self.weight.shape[1], generator=self.generator)
        return (x * size).to(self.dtype)

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        return matmul_w8a8(x, self.weight, self.scale, self.bias)

    def compiled(self, instruction_set: InstructionSet | None = None) -> CompiledLinear:
        assert NATIVE is not None
        return CompiledLinear(
            int8_matrix(self.weight, self.scale.squeeze(1)),
            self.bias,
            dtype=self.dtype,
            native=NATIVE,
            activation_type=TYPE_CODES[torch.int8],
            instruction_set=instruction_set,
        )


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_a_row_is_its_whole_numbers_times_its_scale(quantize: Op) -> None:
    x = Layer(1, 300).inputs(50)

    numbers, scale = quantize(x)

    assert numbers.dtype is torch.int8
    assert (numbers.abs().amax(1) == 127).all()
    torch.testing.assert_close(scale.double(), x.double().abs().amax(1, keepdim=True) / 127)
    error = (numbers.double() * scale.double() - x.double()).abs()
    assert (error <= scale.double() * 0.500001).all()


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_halves_go_to_the_even_number(quantize: Op) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])

    numbers, scale = quantize(x)

    assert scale.item() == 1.0
    assert numbers.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


EXTREMES = {
    "zeros": ([0.0, -0.0, 0.0], False),
    "subnormal": ([1e-45, 1e-40, -1e-39], False),
    "large": ([1e36, -1e36, 1.0], False),
    "nan": ([1.0, float("nan"), 2.0], True),
    "infinity": ([1.0, float("-inf"), 2.0], True),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize(
    "instruction_set", [None, *SETS], ids=lambda s: s.name.lower() if s else "-"
)
def test_extremes_stay_in_their_row(name: str, instruction_set: InstructionSet | None) -> None:
    values, is_lost = EXTREMES[name]
    layer = Layer(40, 77)
    x = layer.inputs(20)
    run: Op = layer.expected if instruction_set is None else layer.compiled(instruction_set)
    clean = run(x)
    x[3] = 0.0
    x[3, [0, 40, 76]] = torch.tensor(values)

    y = run(x)

    others = [row for row in range(20) if row != 3]
    assert torch.equal(y[others], clean[others])
    assert y[3].isnan().all() if is_lost else y[3].isfinite().all()
    if name in ("zeros", "subnormal"):
        torch.testing.assert_close(y[3], layer.bias)


@each_dtype
@pytest.mark.parametrize("run", [matmul_w8a8, matmul_w8a8_triton], ids=["torch", "triton"])
def test_is_near_float64(run: Op, dtype: torch.dtype) -> None:
    layer = Layer(33, 97, dtype)
    x = layer.inputs(20)

    y = run(x, layer.weight, layer.scale, layer.bias)

    scale = (x.float().abs().amax(1, keepdim=True) / 127).double()
    seen = (x.double() / scale).round() * scale
    expected = seen @ (layer.weight.double() * layer.scale.double()).t() + layer.bias.double()
    epsilon = torch.finfo(dtype).eps
    # A quotient beside a half may be rounded the other way: one step of a few numbers.
    assert ((y.double() - expected).abs() <= 1e-5 + scale * 0.3 + epsilon * expected.abs()).all()


@each_set
@each_dtype
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(0, 300),
    out_features=st.integers(1, 200),
    in_features=st.one_of(st.integers(1, 140), st.integers(500, 1200)),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_compiled_layers_have_the_bits_of_the_reference(
    rows: int,
    out_features: int,
    in_features: int,
    threads: int,
    seed: int,
    dtype: torch.dtype,
    instruction_set: InstructionSet,
    same_bits: SameBits,
) -> None:
    torch.set_num_threads(1)
    layer = Layer(out_features, in_features, dtype, seed)
    x = layer.inputs(8)
    expected = layer.expected(x)
    places = torch.randint(0, 8, (rows,), generator=layer.generator)
    compiled = layer.compiled(instruction_set)

    torch.set_num_threads(threads)

    assert same_bits(compiled(x[places]), expected[places])


@each_set
def test_bits_depend_on_neither_rows_nor_places_nor_threads(
    instruction_set: InstructionSet, same_bits: SameBits
) -> None:
    layer = Layer(100, 600, torch.bfloat16)
    x = layer.inputs(512)
    expected = layer.expected(x)
    compiled = layer.compiled(instruction_set)

    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        for rows in (*range(1, 40), 64, 191, 192, 193, 385, 512):
            places = torch.randperm(512, generator=layer.generator)[:rows]
            assert same_bits(compiled(x[places]), expected[places]), (threads, rows)


@each_set
def test_the_greatest_sums_fit(instruction_set: InstructionSet) -> None:
    """Of as many features as there may be, all products of one sign or of the other."""
    layer = Layer(2, MAX_FEATURES)
    layer.weight[:] = torch.tensor([[-128], [127]])
    layer.bias[:] = 0
    x = torch.ones(3, MAX_FEATURES)
    x[1] = -1

    y = layer.compiled(instruction_set)(x)

    sums = torch.tensor([[-128.0, 127.0], [128.0, -127.0], [-128.0, 127.0]]) * 127 * MAX_FEATURES
    numbers, scale = quantize_rows_int8(x)
    assert (numbers.abs() == 127).all()
    assert torch.equal(y, sums * scale * layer.scale.t())
    assert torch.equal(y, layer.expected(x))


def test_more_features_than_an_int32_sums_are_refused() -> None:
    weight = torch.zeros(1, MAX_FEATURES + 1, dtype=torch.int8)
    scale = torch.ones(1, 1)

    with pytest.raises(ValueError, match="weight_NK must have at most 131072 columns, got 131073"):
        prepare_w8a8(weight, scale, None, torch.float32)
    with pytest.raises(ValueError, match="at most 131072 columns"):
        matmul_w8a8(torch.zeros(1, MAX_FEATURES + 1), weight, scale)
    if NATIVE is not None:
        with pytest.raises(ValueError, match="no compiled linear layer"):
            CompiledLinear(
                int8_matrix(weight, scale[0]),
                None,
                dtype=torch.float32,
                native=NATIVE,
                activation_type=TYPE_CODES[torch.int8],
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_NK": torch.zeros(4, 8)}, "weight_NK must be of int8"),
        ({"scale_N1": torch.ones(4)}, r"scale_N1 must be \[4, 1\]"),
        ({"x_TK": torch.zeros(2, 9)}, r"x_TK must be \[T, 8\]"),
        ({"x_TK": torch.zeros(2, 8).double()}, "x_TK must be of"),
        ({"bias_N": torch.zeros(5)}, r"bias_N must be \[4\]"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, torch.Tensor], message: str) -> None:
    layer = Layer(4, 8)
    arguments = {"x_TK": torch.zeros(2, 8), "weight_NK": layer.weight, "scale_N1": layer.scale}

    with pytest.raises(ValueError, match=message):
        matmul_w8a8(**{**arguments, **change})
    if "x_TK" not in change:
        with pytest.raises(ValueError, match=message):
            arguments.pop("x_TK")
            given = {"bias_N": None, "dtype": torch.float32, **arguments, **change}
            prepare_w8a8(**given)


def test_rows_without_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="x_TK must have at least one column"):
        quantize_rows_int8(torch.zeros(2, 0))

"""The compiled dense layer, by every instruction set of this machine: near float64, and a row's
bits are a function of the row and the weights alone."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.kernels.linear import prepare_linear, tile_plan
from quire.kernels.linear.cpu_native import NativeLinear
from quire.kernels.native import InstructionSet, library

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Types = tuple[torch.dtype, torch.dtype]
"""Of the stored weights, and of x."""
NATIVE = library()
pytestmark = pytest.mark.skipif(NATIVE is None, reason="no compiled library")
SETS = [] if NATIVE is None else [s for s in InstructionSet if s <= NATIVE.linear_instruction_set]
TYPES = [
    pytest.param((torch.float32, torch.float32), id="fp32"),
    pytest.param((torch.bfloat16, torch.bfloat16), id="bf16"),
    pytest.param((torch.int8, torch.float32), id="int8-fp32"),
    pytest.param((torch.int8, torch.bfloat16), id="int8-bf16"),
]
each_set = pytest.mark.parametrize("instruction_set", SETS, ids=lambda s: s.name.lower())
each_type = pytest.mark.parametrize("types", TYPES)


class Layer:
    """Random weights, as numbers and as the compiled layer."""

    def __init__(
        self,
        out_features: int,
        in_features: int,
        types: Types,
        *,
        with_bias: bool = True,
        **options: Any,
    ) -> None:
        assert NATIVE is not None
        stored, self.dtype = types
        self.generator = torch.Generator().manual_seed(out_features * 1000 + in_features)
        scale = None
        if stored is torch.int8:
            shape = (out_features, in_features)
            weight = torch.randint(-128, 128, shape, dtype=stored, generator=self.generator)
            scale = (0.5 + torch.rand(out_features, generator=self.generator)) / 100
            scale /= in_features**0.5
        else:
            weight = (self.normal(out_features, in_features) / in_features**0.5).to(stored)
        self.bias = self.normal(out_features).to(self.dtype) if with_bias else None
        self.numbers = weight.double() * (1 if scale is None else scale.double()[:, None])
        self.run = NativeLinear(
            weight, self.bias, native=NATIVE, scale_N=scale, dtype=self.dtype, **options
        )

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def inputs(self, rows: int) -> torch.Tensor:
        return self.normal(rows, self.run.in_features).to(self.dtype)

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        return x.double() @ self.numbers.t() + (0 if self.bias is None else self.bias.double())

    def is_right(self, x: torch.Tensor) -> bool:
        """Within the rounding of a float32 sum, and of the result."""
        expected = self.expected(x)
        limit = 1e-5 + expected.abs() * torch.finfo(self.dtype).eps
        return bool(((self.run(x).double() - expected).abs() <= limit).all())


@each_set
@each_type
@pytest.mark.parametrize(
    ("out_features", "in_features"),
    [(1, 1), (1, 300), (130, 1), (33, 2), (70, 65), (96, 257), (576, 192)],
)
def test_is_near_float64(
    out_features: int, in_features: int, types: Types, instruction_set: InstructionSet
) -> None:
    for with_bias in (True, False):
        layer = Layer(
            out_features,
            in_features,
            types,
            with_bias=with_bias,
            instruction_set=instruction_set,
        )
        for rows in (1, 2, 13, 30):
            assert layer.is_right(layer.inputs(rows)), (rows, with_bias)


@each_set
@each_type
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(0, 400),
    out_features=st.integers(1, 200),
    in_features=st.integers(1, 600),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_any_rows_of_any_shape_have_the_bits_they_have_alone(
    rows: int,
    out_features: int,
    in_features: int,
    threads: int,
    seed: int,
    types: Types,
    instruction_set: InstructionSet,
    same_bits: SameBits,
) -> None:
    torch.set_num_threads(1)
    layer = Layer(out_features, in_features, types, instruction_set=instruction_set)
    x = layer.inputs(8)
    alone = torch.cat([layer.run(row[None]) for row in x])
    places = torch.randint(0, 8, (rows,), generator=torch.Generator().manual_seed(seed))

    torch.set_num_threads(threads)

    assert same_bits(layer.run(x[places]), alone[places])
    assert layer.is_right(x)


@each_set
@each_type
def test_bits_depend_on_neither_rows_nor_places_nor_threads(
    types: Types, instruction_set: InstructionSet, same_bits: SameBits
) -> None:
    layer = Layer(100, 600, types, instruction_set=instruction_set)
    x = layer.inputs(512)
    torch.set_num_threads(1)
    together = layer.run(x)

    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in (1, 2, 5, 6, 7, 12, 13, 24, 25, 191, 192, 193, 385, 511, 512):
            places = torch.randperm(512, generator=layer.generator)[:rows]
            assert same_bits(layer.run(x[places]), together[places]), (threads, rows)


@pytest.mark.parametrize(
    "instruction_set",
    [s for s in SETS if s < InstructionSet.AMX_BF16],
    ids=lambda s: s.name.lower(),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_output_is_one_sum_in_order(
    dtype: torch.dtype, instruction_set: InstructionSet
) -> None:
    """On inputs that cancel each output is rounding error alone, which any other order changes."""
    assert NATIVE is not None
    x, weight = tile_plan.cancelling_inputs(8, 16, 1400, dtype)
    y = NativeLinear(weight, None, native=NATIVE, instruction_set=instruction_set)(x)

    products = x.double()[:, None] * weight.double()[None]
    if instruction_set == InstructionSet.GENERIC:
        products = products.float().double()
    order = torch.arange(1400)
    if instruction_set == InstructionSet.AVX512_BF16 and dtype is torch.bfloat16:
        # vdpbf16ps adds the odd element of a pair first.
        order ^= 1
    in_order = torch.zeros(8, 16)
    for k in order:
        in_order = (in_order.double() + products[..., k]).float()
    assert torch.equal(y, in_order.to(dtype))


@each_set
@each_type
def test_what_is_not_finite_stays_in_its_row(
    types: Types, instruction_set: InstructionSet, same_bits: SameBits
) -> None:
    layer = Layer(40, 77, types, instruction_set=instruction_set)
    x = layer.inputs(20)
    clean = layer.run(x)
    x[3, 76], x[9, 0], x[15, 5] = torch.nan, torch.inf, -torch.inf

    y = layer.run(x)

    others = [row for row in range(20) if row not in (3, 9, 15)]
    assert same_bits(y[others], clean[others])
    assert y[3].isnan().all()
    for row in (9, 15):
        assert y[row].isinf().all()
        assert torch.equal(y[row].double(), layer.expected(x)[row])


@each_set
def test_weights_that_are_not_finite_stay_in_their_column(instruction_set: InstructionSet) -> None:
    assert NATIVE is not None
    weight = torch.ones(70, 33)
    weight[69, 32] = torch.inf
    weight[5, 0] = torch.nan

    y = NativeLinear(weight, None, native=NATIVE, instruction_set=instruction_set)(
        torch.ones(3, 33)
    )

    assert y[:, 69].isinf().all()
    assert y[:, 5].isnan().all()
    assert (y[:, [i for i in range(70) if i not in (5, 69)]] == 33).all()


def test_weights_may_be_freed_and_x_may_be_strided(same_bits: SameBits) -> None:
    layer = Layer(50, 30, (torch.bfloat16, torch.bfloat16))
    x = layer.inputs(9)
    y = layer.run(x)

    wide = torch.cat([x, x], dim=1)

    assert same_bits(layer.run(wide[:, :30]), y)
    assert same_bits(layer.run(x.t().contiguous().t()), y)


def test_it_is_the_layer_of_a_cpu_and_takes_another_number_of_threads(same_bits: SameBits) -> None:
    torch.set_num_threads(1)
    linear = prepare_linear(torch.randn(300, 200))
    x = torch.randn(40, 200)
    y = linear(x)
    torch.set_num_threads(2)

    assert linear.row_counts == ()
    assert isinstance(linear.apply, NativeLinear)
    assert same_bits(linear(x), y)


@each_set
def test_bits_do_not_depend_on_the_arithmetic_of_the_calling_thread(
    instruction_set: InstructionSet, same_bits: SameBits
) -> None:
    """A program may flush denormals in its own thread: the pool's know nothing of it."""
    assert NATIVE is not None
    tiny = torch.full((64, 8), 1e-20)
    weight = torch.full((1500, 8), 1e-20)
    linear = NativeLinear(weight, None, native=NATIVE, instruction_set=instruction_set)
    torch.set_num_threads(2)
    y = linear(tiny)
    assert (y > 0).all()

    torch.set_flush_denormal(True)
    try:
        assert all(same_bits(linear(tiny), y) for _ in range(50))
        assert torch.tensor(1e-40) * 1 == 0, "it is still as the program wants it"
    finally:
        torch.set_flush_denormal(False)


def bits(y: torch.Tensor) -> bytes:
    """Without torch's own threads, which a forked process lacks; it uses none for so few."""
    return y.view(torch.uint8).numpy().tobytes()


@each_type
def test_bits_are_the_same_for_threads_at_once_and_in_a_forked_process(types: Types) -> None:
    layer = Layer(300, 200, types)
    inputs = [layer.inputs(rows) for rows in (1, 7, 60, 100)]
    torch.set_num_threads(1)
    alone = [bits(layer.run(x)) for x in inputs]
    torch.set_num_threads(3)

    def is_same(i: int) -> bool:
        return all(bits(layer.run(inputs[i])) == alone[i] for _ in range(30))

    with ThreadPoolExecutor(len(inputs)) as callers:
        assert all(callers.map(is_same, range(len(inputs))))
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os._exit(0 if all(map(is_same, range(len(inputs)))) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_wrong_inputs_are_named() -> None:
    assert NATIVE is not None
    weight, scale = torch.ones(5, 3), torch.ones(5)
    for wrong, message in (
        ({"weight_NK": weight.half()}, "x must be of float32 or bfloat16, got torch.float16"),
        ({"dtype": torch.bfloat16}, "weight_NK must be of bfloat16, got float32"),
        ({"scale_N": scale}, "weight_NK must be of int8, got float32"),
        ({"weight_NK": weight.to("meta")}, "weight_NK must be on cpu, got meta"),
        ({"bias_N": torch.ones(3)}, r"bias_N must be \[5\], got \[3\]"),
        ({"instruction_set": 99}, r"no compiled linear layer of \[5, 3\]"),
    ):
        arguments: dict[str, Any] = {"weight_NK": weight, "bias_N": None, "native": NATIVE, **wrong}
        with pytest.raises(ValueError, match=message):
            NativeLinear(**arguments)
    linear = NativeLinear(weight, None, native=NATIVE)
    for x in (torch.ones(2, 4), torch.ones(3), torch.ones(2, 3).bfloat16(), torch.ones(2, 3, 1)):
        with pytest.raises(ValueError, match="x_TK must be"):
            linear(x)
    with pytest.raises(ValueError, match="x_TK must be on cpu, got meta"):
        linear(torch.ones(2, 3, device="meta"))

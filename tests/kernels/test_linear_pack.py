"""How the compiled dense layer lays out its weights: byte for byte what torch makes of the layout's
description (kernels/native/linear.h), whatever parts and threads it comes from."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.kernels.linear import prepare_linear
from quire.kernels.linear.cpu_native import NativeLinear
from quire.kernels.native import InstructionSet, library

NATIVE = library()
pytestmark = pytest.mark.skipif(NATIVE is None, reason="no compiled library")
SETS = [] if NATIVE is None else [s for s in InstructionSet if s <= NATIVE.linear_instruction_set]
COLUMNS = {InstructionSet.GENERIC: 8, InstructionSet.AVX2: 16}
each_set = pytest.mark.parametrize("instruction_set", SETS, ids=lambda s: s.name.lower())
each_type = pytest.mark.parametrize(
    "types",
    [
        pytest.param((torch.float32, torch.float32), id="fp32"),
        pytest.param((torch.bfloat16, torch.bfloat16), id="bf16"),
        pytest.param((torch.int8, torch.float32), id="int8-fp32"),
        pytest.param((torch.int8, torch.bfloat16), id="int8-bf16"),
    ],
)
Types = tuple[torch.dtype, torch.dtype]


def numbers(out_features: int, in_features: int, dtype: torch.dtype) -> torch.Tensor:
    """Bytes of every kind, NaN among them; int8 without -128."""
    generator = torch.Generator().manual_seed(out_features * 1000 + in_features)
    shape = (out_features, in_features, dtype.itemsize)
    stored = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
    return stored.view(dtype).squeeze(-1)


def laid_out(weight: torch.Tensor, dtype: torch.dtype, instruction_set: int) -> torch.Tensor:
    """The bytes of the panels: their columns side by side, step by step over the features."""
    columns = COLUMNS.get(InstructionSet(instruction_set), 32)
    has_pairs = dtype is torch.bfloat16 and instruction_set >= InstructionSet.AVX512_BF16
    is_amx = has_pairs and instruction_set == InstructionSet.AMX_BF16
    step, run = (32 if is_amx else 2 if has_pairs else 1), (2 if has_pairs else 1)
    rows, width = weight.shape
    padded = weight.new_zeros(-(-rows // columns) * columns, -(-width // step) * step)
    padded[:rows, :width] = weight
    # [panel, word of features, column, feature of the word]
    panels = padded.view(-1, columns, padded.shape[1] // run, run).transpose(1, 2)
    if weight.dtype is torch.int8 and has_pairs:
        # Of the two vectors of columns, four columns of each in turn.
        panels = panels.unflatten(2, (2, 4, 4)).transpose(2, 3)
    return panels.contiguous().flatten().view(torch.uint8)


def packed(linear: NativeLinear) -> torch.Tensor:
    stored = linear._kept[0]
    assert stored is not None
    return stored


def scale_of(weight: torch.Tensor) -> torch.Tensor | None:
    return torch.ones(len(weight)) if weight.dtype is torch.int8 else None


@each_set
@each_type
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 140),
    width=st.one_of(st.integers(1, 70), st.integers(250, 600)),
    threads=st.integers(1, 3),
)
def test_bytes_are_those_of_the_described_layout(
    rows: int, width: int, threads: int, types: Types, instruction_set: InstructionSet
) -> None:
    assert NATIVE is not None
    torch.set_num_threads(threads)
    stored, dtype = types
    weight = numbers(rows, width, stored)
    linear = NativeLinear(
        weight,
        None,
        native=NATIVE,
        scale_N=scale_of(weight),
        dtype=dtype,
        instruction_set=instruction_set,
    )
    assert torch.equal(packed(linear), laid_out(weight, dtype, instruction_set))


@each_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("cuts", [(1,), (3, 5, 8), (32, 32), (31, 1, 64), (7, 90)])
def test_parts_are_laid_out_as_the_matrix_of_them_all(
    cuts: tuple[int, ...], dtype: torch.dtype, instruction_set: InstructionSet
) -> None:
    assert NATIVE is not None
    torch.set_num_threads(2)
    weight = numbers(130, 77, dtype)
    first, *others = weight.split([*cuts, 130 - sum(cuts)])
    options = {"native": NATIVE, "instruction_set": instruction_set}
    linear = NativeLinear(first, None, more_rows=others, **options)

    assert linear.out_features == 130
    assert torch.equal(packed(linear), packed(NativeLinear(weight, None, **options)))


@pytest.mark.parametrize("has_library", [True, False], ids=["native", "torch"])
def test_a_layer_of_parts_is_that_of_their_matrix(
    has_library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_library:
        monkeypatch.setattr("quire.kernels.linear.library", lambda: None)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(50, 20, generator=generator)
    bias, x = torch.randn(50, generator=generator), torch.randn(3, 20, generator=generator)
    first, *others = weight.split([8, 30, 12])
    others[0] = others[0].t().contiguous().t()

    linear = prepare_linear(first, bias, more_rows=others)

    assert linear.out_features == 50
    assert torch.equal(linear(x), prepare_linear(weight, bias)(x))


def test_parts_of_another_width_or_type_are_refused() -> None:
    weight = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"more_rows must be \[n, 3\]"):
        prepare_linear(weight, more_rows=[torch.ones(2, 5)])
    with pytest.raises(ValueError, match="more_rows must be of float32"):
        prepare_linear(weight, more_rows=[torch.ones(2, 3).bfloat16()])
    with pytest.raises(ValueError, match=r"bias must be \[6\]"):
        prepare_linear(weight, torch.ones(4), more_rows=[torch.ones(2, 3)])


@each_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", [1, 31, 64, 333])
def test_rows_are_given_as_they_were(
    width: int, dtype: torch.dtype, instruction_set: InstructionSet
) -> None:
    assert NATIVE is not None
    torch.set_num_threads(2)
    weight = numbers(70, width, dtype)
    linear = NativeLinear(weight, None, native=NATIVE, instruction_set=instruction_set)
    wanted = torch.tensor([69, 0, 33, 33, 7] * 60, dtype=torch.int32)

    found = linear.rows(wanted)

    assert torch.equal(found.view(torch.uint8), weight[wanted.long()].view(torch.uint8))
    assert linear.rows(wanted[:0]).shape == (0, width)
    for missing in (-1, 70):
        with pytest.raises(IndexError, match="rows are 0 to 69"):
            linear.rows(torch.tensor([missing], dtype=torch.int32))


def test_rows_of_whole_numbers_are_not_given() -> None:
    assert NATIVE is not None
    weight = torch.ones(4, 3, dtype=torch.int8)
    linear = NativeLinear(weight, None, native=NATIVE, scale_N=torch.ones(4), dtype=torch.float32)
    with pytest.raises(ValueError, match="rows of int8 weights are not given"):
        linear.rows(torch.zeros(1, dtype=torch.int32))


def test_blocks_of_rows_need_not_outlive_their_turn() -> None:
    assert NATIVE is not None
    weight = numbers(100, 40, torch.float32)

    def blocks() -> Iterator[torch.Tensor]:
        for rows in weight.split(9):
            block = rows.clone()
            yield block
            block.zero_()

    turns = blocks()
    linear = NativeLinear(next(turns), None, native=NATIVE, more_rows=turns, out_features=100)

    assert torch.equal(packed(linear), packed(NativeLinear(weight, None, native=NATIVE)))
    for count in (99, 101):
        turns = blocks()
        with pytest.raises(ValueError, match=f"expected {count} rows, got"):
            NativeLinear(next(turns), None, native=NATIVE, more_rows=turns, out_features=count)

"""Ops that one call of the compiled library runs: the bits of the ops one by one, in every variant."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace

import pytest
import torch

from quire.kernels.cases import random_ragged_batch
from quire.kernels.flash_attention_ragged.cpu_native import flash_attention_ragged_native
from quire.kernels.linear.cpu_native import NativeLinear
from quire.kernels.native import InstructionSet, Library, library
from quire.kernels.native.program import Program
from quire.kernels.native.row_ops import RMS, activation_native, norm_native, rope_native
from quire.kernels.ragged_batch import RaggedBatch

NATIVE = library()
SETS = () if NATIVE is None else tuple(s for s in InstructionSet if s <= NATIVE.instruction_set)
pytestmark = pytest.mark.skipif(NATIVE is None, reason="the compiled library is not built")

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE, HIDDEN, INNER = 4, 2, 16, 16, 48, 80
STREAM, X, FIRST, SECOND = range(4)
WIDTHS = (HIDDEN, HIDDEN, INNER, 2 * INNER)


class Layer:
    """Random weights of a block, and its caches."""

    def __init__(self, native: Library, dtype: torch.dtype, pages: int, *, int8: bool) -> None:
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        def linear(columns: int, rows: int) -> NativeLinear:
            options = {"native": native, "instruction_set": native.instruction_set}
            if not int8:
                return NativeLinear(random(rows, columns), random(rows), **options)
            weight = torch.randint(-127, 128, (rows, columns), generator=generator)
            scale = torch.rand(rows, generator=generator) / 100
            return NativeLinear(
                weight.to(torch.int8), random(rows), scale_N=scale, dtype=dtype, **options
            )

        self.norm = random(HIDDEN)
        self.qkv = linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        self.output = linear(HEADS * HEAD_DIM, HIDDEN)
        self.up = linear(HIDDEN, 2 * INNER)
        self.down = linear(INNER, HIDDEN)
        self.cos_sin = torch.rand(200, HEAD_DIM, generator=generator)
        self.caches = [random(pages, KV_HEADS, PAGE_SIZE, HEAD_DIM) for _ in range(2)]


def program_of(
    native: Library, layer: Layer, caches: list[torch.Tensor], group: int = 0
) -> Program:
    program = Program(native, layer.norm.dtype, WIDTHS)
    program.norm(STREAM, FIRST, RMS, layer.norm, None, 1e-5)
    program.linear(FIRST, SECOND, layer.qkv)
    program.rope(
        SECOND,
        FIRST,
        layer.cos_sin,
        *caches,
        num_heads=HEADS,
        group=group,
    )
    program.attention(
        FIRST,
        SECOND,
        *caches,
        heads=HEADS,
        scale=0.25,
        group=group,
    )
    program.linear(SECOND, X, layer.output)
    program.norm(X, FIRST, RMS, layer.norm, None, 1e-5, residual=STREAM)
    program.linear(FIRST, SECOND, layer.up)
    program.activation(SECOND, FIRST, "silu", INNER, is_gated=True)
    program.linear(FIRST, X, layer.down)
    return program


def one_by_one(
    native: Library, layer: Layer, caches: list[torch.Tensor], x: torch.Tensor, batch: RaggedBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    normed, _ = norm_native(native, RMS, x, layer.norm, None, 1e-5, None)
    q = rope_native(native, layer.qkv(normed), layer.cos_sin, *caches, batch, num_heads=HEADS)
    out = flash_attention_ragged_native(q, *caches, batch, native=native, scale=0.25)
    attended = layer.output(out.flatten(1))
    normed, total = norm_native(native, RMS, attended, layer.norm, None, 1e-5, x)
    inner = activation_native(native, layer.up(normed), "silu", is_gated=True)
    return layer.down(inner), total


def every(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(x))


Case = tuple[Library, Layer, list[torch.Tensor], torch.Tensor, RaggedBatch]


def case(chosen: InstructionSet, dtype: torch.dtype, *, int8: bool = False) -> Case:
    """A library of that variant, weights, caches, and the tokens of three contexts."""
    assert NATIVE is not None
    native = copy(NATIVE)
    native.instruction_set = chosen
    generator = torch.Generator().manual_seed(5)
    batch, pages = random_ragged_batch(
        (1, 1, 30), (40, 3, 17), PAGE_SIZE, torch.device("cpu"), generator
    )
    layer = Layer(native, dtype, pages, int8=int8)
    x = torch.randn(batch.num_tokens, HIDDEN, generator=generator).to(dtype)
    return native, layer, layer.caches, x, batch


@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("chosen", SETS, ids=lambda chosen: chosen.name.lower())
def test_a_run_has_the_bits_of_its_ops(
    chosen: InstructionSet, dtype: torch.dtype, int8: bool, threads: int, same_bits: SameBits
) -> None:
    native, layer, caches, x, batch = case(chosen, dtype, int8=int8)
    theirs = [cache.clone() for cache in caches]
    expected, total = one_by_one(native, layer, theirs, x, batch)
    program = program_of(native, layer, caches)

    found = program.run(x, (batch,), every(x), X)

    assert same_bits(found, expected)
    assert same_bits(x, total)
    for mine, other in zip(caches, theirs, strict=True):
        assert same_bits(mine, other)


def test_page_groups_have_tables_and_slots_of_their_own(same_bits: SameBits) -> None:
    native, layer, caches, x, batch = case(SETS[-1], torch.bfloat16)
    shift = torch.zeros_like(batch.lookup_table)
    other = replace(batch, lookup_table=shift, slots=torch.zeros_like(batch.slots))
    expected, _ = one_by_one(native, layer, [cache.clone() for cache in caches], x, batch)

    found = program_of(native, layer, caches, group=1).run(x, (other, batch), every(x), X)

    assert same_bits(found, expected)


@pytest.mark.parametrize("name", ["slots", "positions", "lookup_table"])
def test_a_batch_outside_of_caches_and_tables_is_refused(name: str) -> None:
    native, layer, caches, x, batch = case(SETS[-1], torch.bfloat16)
    wrong = replace(batch, **{name: getattr(batch, name) + 10_000})

    with pytest.raises(ValueError, match="positions, slots, pages"):
        program_of(native, layer, caches).run(x, (wrong,), every(x), X)


@pytest.mark.parametrize("rows", [[], [31], [2, 0, 2, 17], [*range(32), *range(32)]])
def test_rows_are_picked_in_any_order_and_number(rows: list[int], same_bits: SameBits) -> None:
    native, layer, caches, x, batch = case(SETS[-1], torch.bfloat16)
    program = program_of(native, layer, caches)
    program.pick(X, FIRST, HIDDEN)
    program.pick(STREAM, SECOND, HIDDEN)
    program.norm(FIRST, X, RMS, layer.norm, None, 1e-5, residual=SECOND, is_of_picked=True)
    out, total = one_by_one(native, layer, [cache.clone() for cache in caches], x, batch)
    picked = torch.tensor(rows, dtype=torch.int64)
    expected, _ = norm_native(native, RMS, out[picked], layer.norm, None, 1e-5, total[picked])

    assert same_bits(program.run(x, (batch,), picked, X), expected)


def test_what_is_kept_of_a_run_is_as_large_as_the_picked_rows() -> None:
    native, layer, caches, x, batch = case(SETS[-1], torch.bfloat16)

    found = program_of(native, layer, caches).run(x, (batch,), torch.tensor([3]), X)

    assert found.untyped_storage().nbytes() == found.nbytes


@pytest.mark.parametrize("row", [-1, 32])
def test_a_picked_row_that_the_batch_does_not_have_is_refused(row: int) -> None:
    native, layer, caches, x, batch = case(SETS[-1], torch.bfloat16)
    program = program_of(native, layer, caches)
    program.pick(X, FIRST, HIDDEN)

    with pytest.raises(ValueError, match="picked rows"):
        program.run(x, (batch,), torch.tensor([0, row]), X)


def test_rows_of_another_number_width_or_dtype_are_refused() -> None:
    native, layer, caches, x, batch = case(SETS[-1], torch.bfloat16)
    program = program_of(native, layer, caches)
    for wrong in (x[1:], x[:, 1:].contiguous(), x.float()):
        with pytest.raises(ValueError, match="first_TC"):
            program.run(wrong, (batch,), every(x), X)


def test_an_op_whose_rows_have_no_room_is_refused() -> None:
    native, layer, caches, _, _ = case(SETS[-1], torch.bfloat16)
    program = Program(native, torch.bfloat16, (HIDDEN, HIDDEN, INNER - 1, 2 * INNER - 1))
    with pytest.raises(ValueError, match=f"rows of {2 * INNER}, buffer 3 of {2 * INNER - 1}"):
        program.linear(FIRST, SECOND, layer.up)
    with pytest.raises(ValueError, match="rows of"):
        program.activation(SECOND, FIRST, "silu", INNER, is_gated=True)
    with pytest.raises(ValueError, match=f"rows of {INNER}, buffer 2"):
        program.linear(FIRST, X, layer.down)
    with pytest.raises(ValueError, match="rows of"):
        program.norm(STREAM, FIRST, RMS, torch.ones(INNER), None, 1e-5)
    with pytest.raises(ValueError, match="rows of"):
        program.attention(
            X,
            SECOND,
            *caches,
            heads=HEADS,
            scale=1.0,
        )

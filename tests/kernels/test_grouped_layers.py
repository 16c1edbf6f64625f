"""Layers on their own rows in one call: bits of each layer alone, whatever the groups and threads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.kernels.grouped_matmul_ragged import prepared
from quire.kernels.grouped_matmul_ragged.prepared import CompiledLayers, EachLayer, group_layers
from quire.kernels.grouped_matmul_ragged.reference import grouped_matmul_ragged_reference
from quire.kernels.linear import prepare_linear
from quire.kernels.linear.cpu_native import INT4, CompiledLinear, NativeLinear, StoredMatrix
from quire.kernels.moe_create_indices.reference import moe_create_indices_reference
from quire.kernels.native import InstructionSet, library

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
NATIVE = library()
needs_library = pytest.mark.skipif(NATIVE is None, reason="no compiled library")
SETS = [] if NATIVE is None else [s for s in InstructionSet if s <= NATIVE.linear_instruction_set]
TYPES = [
    pytest.param((torch.float32, torch.float32), id="fp32"),
    pytest.param((torch.bfloat16, torch.bfloat16), id="bf16"),
    pytest.param((torch.int8, torch.bfloat16), id="int8-bf16"),
]
each_set = pytest.mark.parametrize("instruction_set", SETS, ids=lambda s: s.name.lower())
each_type = pytest.mark.parametrize("types", TYPES)


def compiled(
    count: int, out_features: int, in_features: int, types: tuple[torch.dtype, torch.dtype],
    instruction_set: InstructionSet | None = None,
) -> list[NativeLinear]:  # fmt: skip
    assert NATIVE is not None
    stored, dtype = types
    generator = torch.Generator().manual_seed(count * 1000 + out_features)
    layers = []
    for _ in range(count):
        weight = torch.randn(out_features, in_features, generator=generator)
        options: dict[str, Any] = {"native": NATIVE, "instruction_set": instruction_set}
        if stored is torch.int8:
            weight = (weight * 30).clamp(-127, 127)
            scale = torch.rand(out_features, generator=generator)
            options |= {"scale_N": scale, "dtype": dtype}
        bias = torch.randn(out_features, generator=generator).to(dtype)
        layers.append(NativeLinear(weight.to(stored), bias, **options))
    return layers


def alone(
    layers: list[NativeLinear], x: torch.Tensor, starts: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Each row of the grouped order by its layer, one at a time."""
    y = torch.zeros(len(x), layers[0].out_features, dtype=x.dtype)
    for group, layer in enumerate(ids.tolist()):
        for row in range(int(starts[group]), int(starts[group + 1])):
            if layer >= 0:
                y[row] = layers[layer](x[row : row + 1])[0]
    return y


@each_set
@each_type
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_groups_have_the_bits_of_their_layers_alone(
    types: tuple[torch.dtype, torch.dtype],
    instruction_set: InstructionSet,
    data: st.DataObject,
    same_bits: SameBits,
) -> None:
    assert NATIVE is not None
    count, top_k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    # With few experts to choose from some have many rows and the others none; -1 is foreign.
    experts = st.sampled_from(
        data.draw(st.lists(st.integers(-1, count - 1), min_size=1, max_size=4))
    )
    tokens = data.draw(st.sampled_from([0, 1, 2, 7, 30]))
    chosen = data.draw(st.lists(experts, min_size=tokens * top_k, max_size=tokens * top_k))
    shape = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 150))
    layers = compiled(count, *shape, types, instruction_set)
    grouped = CompiledLayers(layers, NATIVE)
    ids = torch.tensor(chosen, dtype=torch.int32)
    order, starts, _, expert_ids, _ = moe_create_indices_reference(ids, count)
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(1)).to(types[1])
    in_order = x[order.long() // top_k]
    torch.set_num_threads(1)
    expected = alone(layers, in_order, starts, expert_ids)

    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same_bits(grouped(x, starts, expert_ids, order, top_k), expected)
        assert same_bits(grouped(in_order, starts, expert_ids), expected)


@each_set
@each_type
def test_long_groups_of_wide_layers_have_the_bits_of_their_layers_alone(
    types: tuple[torch.dtype, torch.dtype], instruction_set: InstructionSet, same_bits: SameBits
) -> None:
    """Several blocks of rows and several tiles of weights, beside a group of one row."""
    assert NATIVE is not None
    layers = compiled(4, 300, 260, types, instruction_set)
    starts = torch.tensor([0, 400, 401, 600, 600], dtype=torch.int32)
    ids = torch.tensor([2, 0, 3, -1], dtype=torch.int32)
    x = torch.randn(600, 260, generator=torch.Generator().manual_seed(1)).to(types[1])
    expected = torch.cat([layers[2](x[:400]), layers[0](x[400:401]), layers[3](x[401:])])

    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same_bits(CompiledLayers(layers, NATIVE)(x, starts, ids), expected)


@each_set
@each_type
@pytest.mark.parametrize("tokens", [0, 1, 5, 210])
def test_all_rows_for_each_layer_have_its_bits(
    tokens: int,
    types: tuple[torch.dtype, torch.dtype],
    instruction_set: InstructionSet,
    same_bits: SameBits,
) -> None:
    assert NATIVE is not None
    layers = compiled(3, 70, 40, types, instruction_set)
    grouped = CompiledLayers(layers, NATIVE)
    # Heads are parts of wider ones.
    x = torch.randn(tokens, 3, 64, generator=torch.Generator().manual_seed(1)).to(types[1])
    expected = torch.stack([layer(x[:, i, :40].contiguous()) for i, layer in enumerate(layers)], 1)

    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same_bits(grouped.on_all(x[..., :40]), expected)
    assert same_bits(
        grouped.on_all(x[..., :40].transpose(1, 2).contiguous().transpose(1, 2)), expected
    )


@pytest.mark.parametrize("has_library", [pytest.param(True, marks=needs_library), False])
def test_it_is_near_float64_with_the_library_and_without(
    has_library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_library:
        monkeypatch.setattr(prepared, "library", lambda: None)
        monkeypatch.setattr("quire.kernels.linear.library", lambda: None)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 33, 20, generator=generator)
    bias = torch.randn(5, 33, generator=generator)
    layers = group_layers([prepare_linear(*both) for both in zip(weight, bias, strict=True)])
    assert isinstance(layers, CompiledLayers if has_library else EachLayer)
    x = torch.randn(9, 20, generator=generator)
    chosen = torch.tensor([4, 0, 0, 2, -1, 4, 0, 0, 0] * 2, dtype=torch.int32)
    order, starts, _, ids, _ = moe_create_indices_reference(chosen, 5)

    y = layers(x, starts, ids, order, 2)

    expected = grouped_matmul_ragged_reference(
        *(x.double(), weight.double(), starts, ids), bias=bias.double(),
        token_expert_order=order, top_k=2,
    )  # fmt: skip
    torch.testing.assert_close(y.double(), expected.double(), rtol=1e-5, atol=1e-5)
    x_TLK = torch.randn(7, 5, 20, generator=generator)
    for_all = torch.einsum("tlk,lnk->tln", x_TLK.double(), weight.double()) + bias.double()
    torch.testing.assert_close(layers.on_all(x_TLK).double(), for_all, rtol=1e-5, atol=1e-5)


def in_groups(*, has_offsets: bool) -> CompiledLinear:
    """Four bits [40, 64] in groups of 16."""
    assert NATIVE is not None
    generator = torch.Generator().manual_seed(int(has_offsets))
    matrix = StoredMatrix(
        weight=torch.randint(-(2**31), 2**31 - 1, (40, 8), generator=generator).to(torch.int32),
        weight_type=INT4,
        out_features=40,
        in_features=64,
        scales=torch.rand(4, 40, generator=generator),
        offsets=torch.rand(4, 40, generator=generator) if has_offsets else None,
    )
    return CompiledLinear(matrix, None, dtype=torch.float32, native=NATIVE)


@needs_library
@pytest.mark.parametrize("has_offsets", [True, False])
def test_layers_in_groups_are_alike_with_offsets_or_without(
    has_offsets: bool, same_bits: SameBits
) -> None:
    assert NATIVE is not None
    layers = [in_groups(has_offsets=has_offsets), in_groups(has_offsets=has_offsets)]
    x_TLK = torch.randn(5, 2, 64, generator=torch.Generator().manual_seed(2))

    y = CompiledLayers(layers, NATIVE).on_all(x_TLK)

    for number, layer in enumerate(layers):
        assert same_bits(y[:, number], layer(x_TLK[:, number]))
    with pytest.raises(ValueError, match="does not know this call"):
        CompiledLayers([*layers, in_groups(has_offsets=not has_offsets)], NATIVE)


@needs_library
def test_wrong_inputs_are_named() -> None:
    assert NATIVE is not None
    plain = (torch.float32, torch.float32)
    layers = compiled(2, 5, 3, plain)
    with pytest.raises(ValueError, match="does not know this call"):
        CompiledLayers([*layers, *compiled(1, 5, 4, plain)], NATIVE)
    with pytest.raises(ValueError, match="does not know this call"):
        CompiledLayers([*layers, *compiled(1, 5, 3, (torch.int8, torch.float32))], NATIVE)
    grouped = CompiledLayers(layers, NATIVE)
    x = torch.ones(4, 3)

    def int32(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    starts, ids = int32(0, 1, 4), int32(0, 1)
    for arguments, message in (
        ((torch.ones(4, 2), starts, ids), r"x_TK must be \[T, 3\]"),
        ((x.bfloat16(), starts, ids), "x_TK must be of float32"),
        ((x, starts[:2], ids), r"starts must be \[3\]"),
        ((x, starts, ids.long()), "ids must be of int32"),
        ((x, starts, ids, int32(0, 1), 1), r"order must be \[4\]"),
        ((x, int32(0, 1, 5), ids), "groups must be of the 4 rows, 2 layers and 4 rows of x"),
        ((x, int32(1, 1, 4), ids), "groups must be"),
        ((x, int32(0, 4, 1), ids), "groups must be"),
        ((x, starts, int32(0, 2)), "groups must be"),
        ((x, starts, ids, int32(0, 1, 2, 4), 1), "groups must be"),
        ((x, starts, ids, int32(0, 1, -1, 3), 1), "groups must be"),
    ):
        with pytest.raises(ValueError, match=message):
            grouped(*arguments)
    for wrong in (torch.ones(4, 3, 3), torch.ones(4, 2, 3).bfloat16(), torch.ones(2, 3)):
        with pytest.raises(ValueError, match="x_TLK must be"):
            grouped.on_all(wrong)

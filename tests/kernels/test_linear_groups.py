"""Compiled layers of whole numbers in groups, by every instruction set of this machine: near
float64, with bits that neither rows nor places nor threads change, of every stored format."""

from collections.abc import Callable

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.kernels.gguf.cases import random_blocks
from quire.kernels.gguf.encodings import ENCODINGS
from quire.kernels.gptq_awq import dequantize_awq, dequantize_gptq
from quire.kernels.gptq_awq.reference import pack_words
from quire.kernels.linear.cpu_groups import awq_matrix, compiled, gguf_matrix, gptq_matrix
from quire.kernels.linear.cpu_native import INT4, INT8, CompiledLinear, StoredMatrix
from quire.kernels.native import InstructionSet, library
from quire.kernels.native.number_groups import GGUF_GROUPS, NumberGroups

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
NATIVE = library()
pytestmark = pytest.mark.skipif(NATIVE is None, reason="no compiled library")
SETS = [] if NATIVE is None else [s for s in InstructionSet if s <= NATIVE.linear_instruction_set]
DTYPES = [torch.float32, torch.bfloat16]
each_set = pytest.mark.parametrize("instruction_set", SETS, ids=lambda s: s.name.lower())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_bits = pytest.mark.parametrize("bits", [4, 8])


class Layer:
    """Random numbers of all values in groups, also as the compiled layer."""

    def __init__(
        self,
        out_features: int,
        in_features: int,
        layout: NumberGroups,
        dtype: torch.dtype,
        instruction_set: InstructionSet | None = None,
    ) -> None:
        assert NATIVE is not None
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(out_features * 1000 + in_features)
        bits, limit = layout.bits, 2 ** (layout.bits - 1)
        size = in_features if layout.size == -1 else layout.size
        shape = (out_features, in_features // size, size)
        numbers = torch.randint(-limit, limit, shape, generator=self.generator)
        numbers[0, 0, 0], numbers[-1, -1, -1] = -limit, limit - 1
        scales = (0.5 + torch.rand(shape[:2], generator=self.generator)) / limit / in_features**0.5
        offsets = torch.randn(shape[:2], generator=self.generator) / in_features**0.5
        offsets = offsets if layout.has_offsets else torch.zeros(shape[:2])
        weight = numbers * scales.double()[..., None] + offsets.double()[..., None]
        self.weight = weight.flatten(1)
        stored = numbers.flatten(1).to(torch.int8)
        if bits == 4:
            stored = pack_words(stored.t() & 15).t().contiguous()
        self.bias = torch.randn(out_features, generator=self.generator).to(dtype)
        self.matrix = StoredMatrix(
            weight=stored,
            weight_type=INT4 if bits == 4 else INT8,
            out_features=out_features,
            in_features=in_features,
            scales=scales.t().contiguous(),
            offsets=offsets.t().contiguous() if layout.has_offsets else None,
        )
        self.run = CompiledLinear(
            self.matrix, self.bias, dtype=dtype, native=NATIVE, instruction_set=instruction_set
        )

    def inputs(self, rows: int) -> torch.Tensor:
        shape = (rows, self.run.in_features)
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def is_right(self, x: torch.Tensor) -> bool:
        """Within the rounding of a float32 sum, and of the result."""
        return is_near(self.run(x), x.double() @ self.weight.t() + self.bias.double())


def is_near(y: torch.Tensor, expected: torch.Tensor) -> bool:
    limit = 2e-5 + expected.abs() * torch.finfo(y.dtype).eps
    return bool(((y.double() - expected).abs() <= limit).all())


LAYOUTS = [
    # out_features, in_features, size of a group
    (1, 32, 16),
    (33, 16, -1),
    (70, 40, -1),
    (64, 256, 32),
    (96, 384, 48),
    (65, 512, 128),
    (40, 1040, -1),
    (100, 1536, 768),
]


@each_set
@each_dtype
@each_bits
@pytest.mark.parametrize("has_offsets", [True, False])
def test_is_near_float64(
    bits: int, has_offsets: bool, dtype: torch.dtype, instruction_set: InstructionSet
) -> None:
    for out_features, in_features, size in LAYOUTS:
        layout = NumberGroups(bits, size, has_offsets)
        if size == -1 and bits == 8 and not has_offsets:
            continue  # a scale per row: not in groups
        layer = Layer(out_features, in_features, layout, dtype, instruction_set)
        for rows in (1, 2, 3, 7, 13, 30):
            assert layer.is_right(layer.inputs(rows)), (out_features, in_features, size, rows)


@each_set
@each_dtype
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(0, 400),
    out_features=st.integers(1, 200),
    layout=st.builds(
        NumberGroups,
        bits=st.sampled_from([4, 8]),
        size=st.integers(1, 20).map(lambda sixteens: 16 * sixteens),
        has_offsets=st.booleans(),
    ),
    groups=st.integers(2, 9),
    threads=st.integers(1, 4),
)
def test_any_rows_of_any_shape_have_the_bits_they_have_alone(
    rows: int,
    out_features: int,
    layout: NumberGroups,
    groups: int,
    threads: int,
    dtype: torch.dtype,
    instruction_set: InstructionSet,
    same_bits: SameBits,
) -> None:
    torch.set_num_threads(1)
    layer = Layer(out_features, groups * layout.size, layout, dtype, instruction_set)
    x = layer.inputs(8)
    alone = torch.cat([layer.run(row[None]) for row in x])
    places = torch.randint(0, 8, (rows,), generator=layer.generator)

    torch.set_num_threads(threads)

    assert same_bits(layer.run(x[places]), alone[places])
    assert layer.is_right(x)


@each_set
@each_dtype
@pytest.mark.parametrize(
    "layout",
    [NumberGroups(4, 32, has_offsets=True), NumberGroups(4, 512), NumberGroups(8, 16)],
    ids=str,
)
def test_bits_depend_on_neither_rows_nor_places_nor_threads(
    layout: NumberGroups, dtype: torch.dtype, instruction_set: InstructionSet, same_bits: SameBits
) -> None:
    layer = Layer(100, 1024, layout, dtype, instruction_set)
    x = layer.inputs(512)
    torch.set_num_threads(1)
    together = layer.run(x)

    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in (1, 2, 3, 5, 6, 7, 12, 13, 24, 25, 191, 192, 193, 385, 512):
            places = torch.randperm(512, generator=layer.generator)[:rows]
            assert same_bits(layer.run(x[places]), together[places]), (threads, rows)


@each_set
@each_dtype
@each_bits
def test_what_is_not_finite_stays_in_its_row(
    bits: int, dtype: torch.dtype, instruction_set: InstructionSet, same_bits: SameBits
) -> None:
    layer = Layer(40, 96, NumberGroups(bits, 32, has_offsets=True), dtype, instruction_set)
    x = layer.inputs(20)
    clean = layer.run(x)
    x[3, 95], x[9, 0] = torch.nan, torch.inf

    y = layer.run(x)

    others = [row for row in range(20) if row not in (3, 9)]
    assert same_bits(y[others], clean[others])
    assert y[3].isnan().all()
    assert not y[9].isfinite().any()


def test_a_layer_keeps_its_numbers_and_scales_once() -> None:
    layer = Layer(64, 512, NumberGroups(4, 32, has_offsets=True), torch.bfloat16)

    held = {one.data_ptr(): one.nbytes for one in layer.run._kept if one is not None}
    del held[layer.bias.data_ptr()]

    assert sum(held.values()) == NumberGroups(4, 32, has_offsets=True).device_bytes(64, 512)


@pytest.mark.parametrize(("in_features", "size"), [(24, 12), (36, 36), (96, 24)])
def test_groups_of_other_sizes_are_refused(in_features: int, size: int) -> None:
    assert NATIVE is not None
    matrix = StoredMatrix(
        weight=torch.zeros(8, in_features // 2, dtype=torch.uint8),
        weight_type=INT4,
        out_features=8,
        in_features=in_features,
        scales=torch.ones(in_features // size, 8),
    )

    with pytest.raises(ValueError, match=rf"no compiled linear layer of \[8, {in_features}\]"):
        CompiledLinear(matrix, None, dtype=torch.float32, native=NATIVE)


def weights_of(matrix: StoredMatrix) -> torch.Tensor:
    """What the compiled layer multiplies, a column at a time: exact, but for rounded offsets."""
    assert NATIVE is not None
    linear = compiled(matrix, None, torch.float32, NATIVE)
    return linear(torch.eye(matrix.in_features)).t()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_blocks_of_gguf_are_the_numbers_of_the_gguf_package(encoding: str) -> None:
    blocks = random_blocks(70, 512, encoding, torch.Generator().manual_seed(5))
    kind = gguf.GGMLQuantizationType[encoding]
    expected = torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), kind))

    matrix = gguf_matrix(blocks, encoding)

    layout = GGUF_GROUPS[encoding]
    assert matrix.group_size == layout.size
    assert (matrix.weight_type, matrix.offsets is not None) == (
        INT4 if layout.bits == 4 else INT8,
        layout.has_offsets,
    )
    torch.testing.assert_close(weights_of(matrix), expected, rtol=1e-6, atol=1e-7)


def test_the_least_byte_of_a_block_of_gguf_is_a_number_like_others() -> None:
    """The quantizer makes none, other programs may."""
    blocks = torch.full((3, 34), 0x80, dtype=torch.uint8)
    blocks[:, :2] = torch.tensor([0.5]).half().view(torch.uint8)
    for whole in (blocks, blocks.repeat(1, 4)):
        assert (weights_of(gguf_matrix(whole, "Q8_0")) == -64).all()


def random_words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape).int()


@pytest.mark.parametrize("has_zeros", [True, False])
@pytest.mark.parametrize("zero_offset", [0, 1])
def test_words_of_gptq_are_their_numbers(has_zeros: bool, zero_offset: int) -> None:
    qweight, scales = random_words(16, 72), (torch.rand(4, 72) / 100).half()
    qzeros = random_words(4, 9) if has_zeros else None

    matrix = gptq_matrix(qweight, qzeros, scales, zero_offset)

    expected = dequantize_gptq(qweight, qzeros, scales, group_size=32, zero_offset=zero_offset)
    assert (matrix.offsets is not None) == has_zeros
    torch.testing.assert_close(weights_of(matrix), expected, rtol=1e-6, atol=1e-7)


def test_zero_points_in_the_middle_cost_nothing() -> None:
    middle = torch.full((4, 9), 0x77777777, dtype=torch.int32)

    matrix = gptq_matrix(random_words(16, 72), middle, torch.ones(4, 72), 1)

    assert matrix.offsets is None


def test_words_of_awq_are_their_numbers() -> None:
    qweight, qzeros = random_words(128, 9), random_words(4, 9)
    scales = (torch.rand(4, 72) / 100).half()

    matrix = awq_matrix(qweight, qzeros, scales)

    expected = dequantize_awq(qweight, qzeros, scales, group_size=32)
    torch.testing.assert_close(weights_of(matrix), expected, rtol=1e-6, atol=1e-7)


@each_dtype
def test_columns_in_the_order_of_activations_meet_their_weights(
    dtype: torch.dtype, same_bits: SameBits
) -> None:
    assert NATIVE is not None
    layer = Layer(64, 256, NumberGroups(4, 32), dtype)
    order, x = torch.randperm(256, generator=layer.generator).int(), layer.inputs(20)

    permuted = compiled(layer.matrix, layer.bias, dtype, NATIVE, order)

    assert same_bits(permuted(x), layer.run(x[:, order.long()]))

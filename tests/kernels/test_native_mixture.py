"""The compiled ops around experts, in the variant of each instruction set: equal to their references,
a row the same bits in every batch and with any number of threads, and torch's way without a library."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.kernels.cases import Case, Operation, every_operation
from quire.kernels.grouped_matmul_ragged import cpu
from quire.kernels.grouped_matmul_ragged.reference import gate_and_up, gated
from quire.kernels.moe_create_indices import moe_create_indices
from quire.kernels.moe_create_indices.reference import moe_create_indices_reference
from quire.kernels.moe_router.reference import moe_router_topk_reference
from quire.kernels.native import InstructionSet, library
from quire.kernels.native.mixture_ops import combine_native, gate_native, router_native

CPU = torch.device("cpu")
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
NATIVE = library()
needs_library = pytest.mark.skipif(NATIVE is None, reason="no compiled library")
SETS = () if NATIVE is None else tuple(s for s in InstructionSet if s <= NATIVE.instruction_set)
every_set = pytest.mark.parametrize("chosen", SETS, ids=lambda chosen: chosen.name.lower())
NAMES = ("moe_router_topk", "moe_create_indices", "moe_combine")
CASES = [
    pytest.param(operation, case, id=f"{operation.name}-{case.name}")
    for operation in every_operation()
    if operation.name in NAMES
    for case in operation.small
    if case.dtype != torch.float16
]


def in_one_variant(operation: Operation, chosen: InstructionSet) -> Callable[..., Any]:
    assert NATIVE is not None
    native = NATIVE
    if operation.name == "moe_router_topk":
        return lambda **given: router_native(native, **given, instruction_set=chosen)
    if operation.name == "moe_combine":
        return lambda **given: combine_native(native, **given, instruction_set=chosen)
    return moe_create_indices


def results(run: Callable[..., Any], case: Case) -> tuple[torch.Tensor, ...]:
    result = run(**case.build(CPU, torch.Generator().manual_seed(1)))
    return result if isinstance(result, tuple) else (result,)


@every_set
@pytest.mark.parametrize(("operation", "case"), CASES)
def test_equals_its_reference(operation: Operation, case: Case, chosen: InstructionSet) -> None:
    actual = results(in_one_variant(operation, chosen), case)

    for one, other in zip(actual, results(operation.reference(), case), strict=True):
        torch.testing.assert_close(one, other, atol=case.tolerance, rtol=case.relative)


@pytest.mark.parametrize(("operation", "case"), CASES)
def test_without_the_library_torch_computes_the_same(
    operation: Operation, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"quire.kernels.{operation.package}.cpu.library", lambda: None)

    actual = results(operation.function(), case)

    for one, other in zip(actual, results(operation.reference(), case), strict=True):
        assert torch.equal(one, other)


@st.composite
def routings(draw: st.DrawFn) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits with many equals, and what else there may be in a row; options of the router."""
    num_groups = draw(st.sampled_from([1, 1, 2, 3, 20]))
    group_size = draw(st.sampled_from([1, 2, 5, 17, 25]))
    top_k_groups = draw(st.integers(1, num_groups))
    scoring = draw(st.sampled_from(["softmax", "softmax_top_k", "sigmoid"]))
    score = "max" if group_size < 2 else draw(st.sampled_from(["max", "top2_sum"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.tensor([-2.0, -1.0, -0.0, 0.0, 0.5, 2.5, torch.nan, torch.inf, -torch.inf])
    values = values[: draw(st.sampled_from([6, 6, 6, 7, 9]))]
    shape = draw(st.integers(0, 4)), num_groups * group_size
    logits = values[torch.randint(len(values), shape, generator=generator)]
    bias = torch.randint(2, shape[1:], generator=generator) / 2
    # Softmax scores and a bias may meet in a sum, and then rounding decides.
    has_bias = scoring == "sigmoid" and draw(st.booleans())
    return logits, {
        "top_k": draw(st.integers(1, top_k_groups * group_size)),
        "correction_bias_E": bias if has_bias else None,
        "scoring": scoring,
        "renormalize": scoring != "softmax_top_k" and draw(st.booleans()),
        "num_groups": num_groups,
        "top_k_groups": top_k_groups,
        "group_score": score if scoring == "sigmoid" else "max",
        "routed_scaling": draw(st.sampled_from([1.0, 2.5])),
    }


@every_set
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(routing=routings(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_routes_as_the_reference_with_equals_and_what_is_not_finite(
    chosen: InstructionSet, routing: tuple[torch.Tensor, dict[str, Any]], dtype: torch.dtype
) -> None:
    assert NATIVE is not None
    logits, options = routing[0].to(dtype), routing[1]

    weights, experts = router_native(NATIVE, logits, **options, instruction_set=chosen)

    expected_weights, expected = moe_router_topk_reference(logits, **options)
    assert torch.equal(experts, expected)
    torch.testing.assert_close(weights, expected_weights, atol=1e-7, rtol=4e-6, equal_nan=True)


@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 83])
def test_the_gate_equals_its_formula_in_float64(
    chosen: InstructionSet, columns: int, interleaved: bool, dtype: torch.dtype
) -> None:
    assert NATIVE is not None
    x = (4 * torch.randn(9, 2 * columns, generator=torch.Generator().manual_seed(1))).to(dtype)
    x[3], x[4, 0], x[5, -1] = torch.nan, torch.inf, -torch.inf
    for alpha, limit, offset in ((1.0, None, 0.0), (1.702, 7.0, 1.0), (1.702, 0.5, 1.0)):
        out = gate_native(
            NATIVE, x, interleaved, alpha, limit, offset, instruction_set=chosen
        ).double()

        expected = gated(*gate_and_up(x.double(), interleaved), alpha, limit, offset)
        torch.testing.assert_close(
            out, expected, atol=1e-6, rtol=4e-6 if dtype == torch.float32 else 2**-8, equal_nan=True
        )


def test_the_gate_is_torch_s_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 10)
    expected = gated(*gate_and_up(x, True), 1.702, 7.0, 1.0)

    torch.testing.assert_close(cpu.gated_cpu(x, True, 1.702, 7.0, 1.0), expected)
    monkeypatch.setattr(cpu, "library", lambda: None)
    assert torch.equal(cpu.gated_cpu(x, True, 1.702, 7.0, 1.0), expected)


@needs_library
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-2, 12), max_size=80), st.integers(1, 10))
def test_indices_equal_the_reference(ids: list[int], experts: int) -> None:
    topk_ids = torch.tensor(ids, dtype=torch.int32)

    actual = moe_create_indices(topk_ids, experts)

    for one, other in zip(actual, moe_create_indices_reference(topk_ids, experts), strict=True):
        assert torch.equal(one, other)


@every_set
def test_a_row_has_the_same_bits_in_every_batch_and_with_any_threads(
    chosen: InstructionSet, same_bits: SameBits
) -> None:
    assert NATIVE is not None
    native, generator = NATIVE, torch.Generator().manual_seed(2)
    logits = torch.randn(130, 67, generator=generator)
    pairs = torch.randn(520, 1031, generator=generator).bfloat16()
    shares = torch.rand(130, 4, generator=generator)

    def routed(rows: slice) -> torch.Tensor:
        return router_native(native, logits[rows], 6, renormalize=True, instruction_set=chosen)[0]

    def gate(rows: slice) -> torch.Tensor:
        x = pairs[rows, :1030].contiguous()
        return gate_native(native, x, True, 1.702, 7.0, 1.0, instruction_set=chosen)

    def combined(rows: slice) -> torch.Tensor:
        first, end, _ = rows.indices(130)
        places = torch.arange(4 * (end - first)).flip(0).int()
        x = pairs[4 * first : 4 * end].flip(0)
        return combine_native(native, x, places, shares[rows], instruction_set=chosen)

    before = torch.get_num_threads()
    try:
        for run in (routed, gate, combined):
            torch.set_num_threads(1)
            whole = run(slice(0, 130))
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                for rows in (slice(0, 130), slice(0, 1), slice(64, 130), slice(3, 40)):
                    assert same_bits(run(rows), whole[rows]), (run.__name__, threads, rows)
    finally:
        torch.set_num_threads(before)


@needs_library
def test_places_beyond_the_rows_are_refused() -> None:
    assert NATIVE is not None
    rows, weights = torch.ones(4, 3), torch.ones(2, 2)
    for places in ([0, 1, 2, 4], [0, -1, 2, 3]):
        with pytest.raises(ValueError, match="restore_token_order must be from 0 to 3"):
            combine_native(NATIVE, rows, torch.tensor(places, dtype=torch.int32), weights)

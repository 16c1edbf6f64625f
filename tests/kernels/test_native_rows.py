"""The compiled row ops, in the variant of each instruction set: equal to their references, a row
the same bits in every batch and with any number of threads, and torch's way without a library."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.kernels.activations import KINDS, activation
from quire.kernels.activations.reference import activation_reference, gated_activation_reference
from quire.kernels.cases import Case, Operation, every_operation, random_ragged_batch
from quire.kernels.layer_norm.reference import layer_norm_reference
from quire.kernels.native import InstructionSet, library
from quire.kernels.native.row_ops import (
    LAYER,
    RMS,
    RMS_ROUNDED_ONCE,
    activation_native,
    bitmask_native,
    embedding_native,
    norm_native,
    rope_native,
)
from quire.kernels.rms_norm.reference import rms_norm_reference
from quire.kernels.sampling.cpu_native import sample_tokens_native

CPU = torch.device("cpu")
Run = Callable[..., Any]
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]

NATIVE = library()
SETS = () if NATIVE is None else tuple(s for s in InstructionSet if s <= NATIVE.instruction_set)
every_set = pytest.mark.parametrize("chosen", SETS, ids=lambda chosen: chosen.name.lower())
FUZZ = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def native_ways(chosen: InstructionSet) -> dict[str, Run]:
    """By op, what runs the arguments of its cases in one variant."""
    assert NATIVE is not None
    native = NATIVE

    def rms_norm(x_TC: Any, weight_C: Any, epsilon: float, residual_TC: Any, **options: Any) -> Any:
        kind = RMS_ROUNDED_ONCE if options.get("multiply_before_cast") else RMS
        offset = options.get("weight_offset", 0.0)
        return norm_native(
            native, kind, x_TC, weight_C, None, epsilon, residual_TC, offset,
            instruction_set=chosen,
        )  # fmt: skip

    def layer_norm(x_TC: Any, weight_C: Any, bias_C: Any, epsilon: float, residual_TC: Any) -> Any:
        return norm_native(
            native, LAYER, x_TC, weight_C, bias_C, epsilon, residual_TC, instruction_set=chosen
        )

    def activate(is_gated: bool) -> Run:
        def run(x: torch.Tensor, kind: str = "silu") -> torch.Tensor:
            return activation_native(native, x, kind, is_gated=is_gated, instruction_set=chosen)

        return run

    def rope(qkv: Any, k_cache: Any, v_cache: Any, batch: Any, **options: Any) -> Any:
        angles = options.pop("cos_sin", None)
        return rope_native(
            native, qkv, angles, k_cache, v_cache, batch, **options, instruction_set=chosen
        )

    return {
        "rms_norm": rms_norm,
        "layer_norm": layer_norm,
        "activation": lambda x_TF, kind: activate(False)(x_TF, kind),
        "gated_activation": lambda gate_up_T2F, kind: activate(True)(gate_up_T2F, kind),
        "swish_glu": lambda gate_up_T2F: activate(True)(gate_up_T2F),
        "fused_qk_ragged_rope": rope,
        "split_qkv_ragged": rope,
        "embedding": lambda **given: embedding_native(native, **given, instruction_set=chosen),
        "apply_token_bitmask": lambda **given: bitmask_native(
            native, **given, instruction_set=chosen
        ),
        "sample_tokens": lambda **given: sample_tokens_native(
            native, **given, instruction_set=chosen
        ),
    }


NAMES = (
    ("rms_norm", "layer_norm", "activation", "gated_activation", "swish_glu", "embedding")
    + ("fused_qk_ragged_rope", "split_qkv_ragged", "apply_token_bitmask", "sample_tokens")
)  # fmt: skip
CASES = [
    pytest.param(operation, case, id=f"{operation.name}-{case.name}")
    for operation in every_operation()
    if operation.name in NAMES
    for case in operation.small
    if case.dtype != torch.float16
]


def outcome(run: Run, operation: Operation, case: Case) -> list[torch.Tensor]:
    """What the op returns and writes."""
    inputs = case.build(CPU, torch.Generator().manual_seed(1))
    result = run(**inputs)
    returned = result if isinstance(result, tuple) else () if result is None else (result,)
    return [*returned, *(inputs[name] for name in operation.mutates)]


@every_set
@pytest.mark.parametrize(("operation", "case"), CASES)
def test_equals_its_reference(operation: Operation, case: Case, chosen: InstructionSet) -> None:
    actual = outcome(native_ways(chosen)[operation.name], operation, case)

    expected = outcome(operation.reference(), operation, case)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(
            one.double(),
            other.double(),
            atol=case.tolerance,
            rtol=case.relative,
            equal_nan=True,
        )


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@st.composite
def rows_of_numbers(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, columns], of ordinary rows and of rows of zeros, NaN, infinity or great numbers."""
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(1, 300))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x, residual = 3 * torch.randn(2, rows, columns, generator=generator)
    for row in range(rows):
        odd = draw(
            st.sampled_from([None, None, 0.0, torch.nan, torch.inf, -torch.inf, 1e30, 1e-30])
        )
        if odd is not None:
            x[row, draw(st.integers(0, columns - 1)) :] = odd
            residual[row] = 0.0
    return x.to(dtype), residual.to(dtype)


def assert_alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 4e-6 if expected.dtype == torch.float32 else 2.0**-6
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance, equal_nan=True)


@every_set
@FUZZ
@given(numbers=rows_of_numbers(), data=st.data())
def test_norms_of_any_shape_and_numbers(
    chosen: InstructionSet,
    numbers: tuple[torch.Tensor, torch.Tensor],
    data: st.DataObject,
    same_bits: SameBits,
) -> None:
    x, residual = numbers
    weight, bias = torch.rand(2, x.shape[1]).to(x.dtype)
    given_residual = residual if data.draw(st.booleans()) else None
    options = {
        "weight_offset": float(data.draw(st.booleans())),
        "multiply_before_cast": data.draw(st.booleans()),
    }
    ways = native_ways(chosen)

    normed, total = ways["rms_norm"](x, weight, 1e-5, given_residual, **options)
    expected = rms_norm_reference(x, weight, 1e-5, given_residual, **options)
    assert_alike(normed, expected[0])
    assert torch.equal(total.nan_to_num(), expected[1].nan_to_num())

    normed, _ = ways["layer_norm"](x, weight, bias, 1e-5, given_residual)
    great = (x.float().abs().amax(1) > 1e15) & x.isfinite().all(1)  # squares beyond float32
    expected_norm, _ = layer_norm_reference(x, weight, bias, 1e-5, given_residual)
    torch.testing.assert_close(
        normed[~great], expected_norm[~great], atol=2e-2, rtol=2e-2, equal_nan=True
    )


@every_set
@FUZZ
@given(numbers=rows_of_numbers(), kind=st.sampled_from(KINDS))
def test_activations_of_any_shape_and_numbers(
    chosen: InstructionSet, numbers: tuple[torch.Tensor, torch.Tensor], kind: str
) -> None:
    gate_up = torch.cat(numbers, 1)
    ways = native_ways(chosen)

    out = ways["activation"](gate_up, kind)
    assert_alike(out, activation_reference(gate_up, kind))
    gated = ways["gated_activation"](gate_up, kind)
    assert_alike(gated, gated_activation_reference(gate_up, kind))


def shared_ops(ways: dict[str, Run]) -> Iterator[tuple[str, Callable[[slice], torch.Tensor]]]:
    """Calls with enough rows for several threads, each to run on some of its rows."""
    generator = torch.Generator().manual_seed(2)
    x, residual = torch.randn(2, 130, 1031, generator=generator).bfloat16()
    weight = torch.rand(1031, generator=generator).bfloat16()
    yield "rms_norm", lambda rows: ways["rms_norm"](x[rows], weight, 1e-5, residual[rows])[0]
    yield "layer_norm", lambda rows: ways["layer_norm"](x[rows], weight, None, 1e-5, None)[0]
    yield "activation", lambda rows: ways["activation"](x[rows], "gelu")
    table = torch.randn(50, 1031, generator=generator)
    tokens = torch.randint(50, (130,), generator=generator)
    embed = ways["embedding"]
    yield "embedding", lambda rows: embed(tokens_T=tokens[rows], weight_VC=table, scale=0.3)
    logits = torch.randn(130, 1031, generator=generator)
    words = torch.randint(-(2**31), 2**31, (130, 33), generator=generator).int()

    def masked(rows: slice) -> torch.Tensor:
        out = logits[rows].clone()
        ways["apply_token_bitmask"](logits=out, bitmask=words[rows])
        return out

    yield "bitmask", masked


@every_set
def test_a_row_has_the_same_bits_in_every_batch_and_with_any_threads(
    chosen: InstructionSet, same_bits: SameBits
) -> None:
    for name, run in shared_ops(native_ways(chosen)):
        with torch_threads(1):
            whole = run(slice(None))
        for threads in (1, 2, 3):
            with torch_threads(threads):
                assert same_bits(run(slice(None)), whole), (name, threads)
                for rows in (slice(0, 1), slice(64, 130), slice(129, 130), slice(3, 40)):
                    assert same_bits(run(rows), whole[rows]), (name, threads, rows)


@every_set
def test_queries_and_caches_have_the_same_bits_with_any_threads(chosen: InstructionSet) -> None:
    generator = torch.Generator().manual_seed(3)
    batch, pages = random_ragged_batch((1,) * 130, tuple(range(130)), 16, CPU, generator)
    qkv = torch.randn(130, 9 * 64, generator=generator).bfloat16()
    angles = torch.randn(130, 64, generator=generator)
    norms = torch.rand(2, 64, generator=generator).bfloat16()

    def run(threads: int) -> list[torch.Tensor]:
        caches = torch.zeros(2, pages, 2, 16, 64).bfloat16().unbind()
        with torch_threads(threads):
            q = native_ways(chosen)["fused_qk_ragged_rope"](
                qkv, *caches, batch, cos_sin=angles, num_heads=5, q_norm=norms[0], k_norm=norms[1]
            )
        return [q, *caches]

    first = run(1)
    for threads in (2, 3):
        for one, other in zip(run(threads), first, strict=True):
            assert torch.equal(one, other)


def test_a_batch_beyond_the_tensors_is_refused() -> None:
    if NATIVE is None:
        pytest.skip("no compiled library")
    ways = native_ways(NATIVE.instruction_set)
    batch, pages = random_ragged_batch((1, 1), (3, 5), 16, CPU, torch.Generator())
    qkv, cache = torch.randn(2, 3 * 8), torch.zeros(pages, 1, 16, 8)
    with pytest.raises(ValueError, match="positions among the 5 of cos_sin"):
        ways["fused_qk_ragged_rope"](
            qkv, cache, cache.clone(), batch, cos_sin=torch.ones(5, 8), num_heads=1
        )
    batch.slots[1] = pages * 16
    with pytest.raises(ValueError, match=f"slots in the {pages} pages of k_cache"):
        ways["split_qkv_ragged"](qkv, cache, cache.clone(), batch, num_heads=1)
    assert cache.abs().max() == 0.0


@pytest.mark.parametrize(("operation", "case"), CASES)
def test_without_the_library_torch_computes_the_same(
    operation: Operation, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"quire.kernels.{operation.package}.cpu"
    expected = outcome(operation.reference(), operation, case)

    monkeypatch.setattr(f"{package}.library", lambda: None)
    actual = outcome(operation.function(), operation, case)

    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def test_float16_is_computed_by_torch() -> None:
    x = torch.randn(2, 30).half()

    assert torch.equal(activation(x, "silu"), activation_reference(x, "silu"))

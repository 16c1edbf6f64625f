"""What holds for every op: Triton and the CPU path equal the reference, rows are exact, bad
devices are refused, and `torch.ops.quire` has it with a schema and a fake kernel.

What an op means (oracles, edge values, error texts) is tested in a file of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.kernels.cases import Case, Operation, every_operation
from quire.kernels.torch_op import flat_arguments

CPU = torch.device("cpu")
OPERATIONS = tuple(every_operation())
SMALL = [
    pytest.param(operation, case, id=f"{operation.name}-{case.name}")
    for operation in OPERATIONS
    for case in operation.small
]
FRACTIONS = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty") + (
    "repetition_penalty",
)
PER_ROW = [
    pytest.param(operation, path, id=f"{operation.name}-{path}")
    for operation in OPERATIONS
    if operation.row_inputs
    for path in operation.row_paths
]
REGISTERED = [operation for operation in OPERATIONS if operation.is_registered]


def inputs_of(case: Case, seed: int = 1) -> dict[str, Any]:
    return case.build(CPU, torch.Generator().manual_seed(seed))


def cloned(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def outcome(
    run: Callable[..., Any], operation: Operation, inputs: dict[str, Any]
) -> tuple[torch.Tensor, ...]:
    """Everything the op computed: what it returns, then what it wrote. The rest is unchanged."""
    given = cloned(inputs)
    result = run(**given)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and name not in operation.mutates:
            torch.testing.assert_close(given[name], value, rtol=0, atol=0, equal_nan=True)
    returned = result if isinstance(result, tuple) else () if result is None else (result,)
    written = (given[name] for name in operation.mutates if given[name] is not None)
    return (*returned, *written)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, case: Case) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if not expected.is_floating_point():
        assert torch.equal(actual, expected)
        return
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        atol=case.tolerance,
        rtol=case.relative,
        equal_nan=True,
    )


@pytest.mark.parametrize("path", ["function", "triton"])
@pytest.mark.parametrize(("operation", "case"), SMALL)
def test_equals_its_reference(operation: Operation, case: Case, path: str) -> None:
    run = operation.function() if path == "function" else operation.triton()
    inputs = inputs_of(case)

    actual = outcome(run, operation, inputs)

    expected = outcome(operation.reference(), operation, inputs)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, case)


def rows_of(operation: Operation, inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {
        name: value[rows] if name in operation.row_inputs and value is not None else value
        for name, value in inputs.items()
    }


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize(("operation", "path"), PER_ROW)
def test_a_row_alone_has_the_bits_it_has_in_a_batch(operation: Operation, path: str) -> None:
    """And no rows give no rows."""
    run = operation.function() if path == "function" else operation.triton()
    first = operation.row_inputs[0]
    for dtype in sorted({case.dtype for case in operation.small}, key=str):
        inputs = max(
            (inputs_of(case) for case in operation.small if case.dtype == dtype),
            key=lambda inputs: inputs[first].shape[0],
        )
        rows = inputs[first].shape[0]
        whole = outcome(run, operation, inputs)
        for cut in (slice(0, 1), slice(rows // 2, rows), slice(rows - 1, rows), slice(0, 0)):
            part = outcome(run, operation, rows_of(operation, inputs, cut))
            for one, other in zip(part, whole, strict=True):
                assert torch.equal(bytes_of(one), bytes_of(other[cut])), (dtype, cut)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_tensors_of_another_device_are_refused_by_name(operation: Operation) -> None:
    for case in operation.small[:2]:
        inputs = inputs_of(case)
        tensors = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]
        for name in tensors[1:]:
            mixed = cloned(inputs) | {name: inputs[name].to("meta")}
            with pytest.raises(ValueError, match=rf"\b{name}\b.*(cpu|meta).*(cpu|meta)"):
                operation.function()(**mixed)


def operator_arguments(schema: torch.FunctionSchema, inputs: dict[str, Any]) -> dict[str, Any]:
    """Lists for tuples, and tensors where the function takes a number for all rows too."""
    rows = next(value.shape[0] for value in inputs.values() if isinstance(value, torch.Tensor))
    kinds = {argument.name: str(argument.type) for argument in schema.arguments}
    given = {}
    for name, value in inputs.items():
        if "Tensor" in kinds[name] and isinstance(value, int | float):
            whole = torch.int64 if name == "seed" else torch.int32
            dtype = torch.float32 if name in FRACTIONS else whole
            value = torch.full((rows,), value, dtype=dtype)
        given[name] = list(value) if isinstance(value, tuple) else value
    return given


def allclose_of_any_dtype(a: torch.Tensor, b: torch.Tensor, **options: Any) -> bool:
    wide = (a.float(), b.float()) if a.is_floating_point() else (a, b)
    return bool(torch.isclose(*wide, **options).all())


@pytest.mark.parametrize("operation", REGISTERED, ids=lambda operation: operation.name)
def test_torch_knows_its_schema_and_its_fake(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`opcheck` is torch's own test of mutation, aliasing and fake kernels."""
    # It compares inputs before and after with allclose, which torch 2.13 lacks for float8.
    monkeypatch.setattr(torch, "allclose", allclose_of_any_dtype)
    operator = getattr(torch.ops.quire, operation.name).default
    schema = operator._schema
    written = {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write}
    assert written == set(operation.mutates)
    for case in operation.small[:2]:
        inputs = operator_arguments(schema, flat_arguments(inputs_of(case)))
        positional = [
            inputs.pop(a.name) for a in schema.arguments if not a.kwarg_only and a.name in inputs
        ]
        torch.library.opcheck(
            operator, tuple(positional), inputs, test_utils=("test_schema", "test_faketensor")
        )


def test_every_folder_with_a_kernel_has_its_operations() -> None:
    assert all(dataclasses.is_dataclass(operation) for operation in OPERATIONS)
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for operation in OPERATIONS:
        assert operation.small
        assert operation.compiled, operation.name
        assert operation.function().__doc__, operation.name

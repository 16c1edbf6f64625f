"""Registers the public functions of the ops as `torch.ops.quire.<name>`.

The engine calls the Python functions themselves: the dispatcher would cost some microseconds a
call and give nothing. User code, torch.compile and torch.export get operators with a schema, a
fake kernel (shapes and dtypes without data) and declared mutations.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

NAMESPACE = "quire"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
"""Lives as long as the process: operators vanish with the library object that defined them."""

Function = TypeVar("Function", bound=Callable[..., Any])


def torch_op(
    *, fake: Callable[..., Any], mutates: Sequence[str] = ()
) -> Callable[[Function], Function]:
    """Decorator: register a public function and return it unchanged.

    `fake` is called with the same arguments by name, defaults filled in, so it names those it
    reads and takes the rest as `**_`; it returns empty tensors of the result's shapes and dtypes.
    `mutates` names the tensors that the function writes. A dataclass parameter (RaggedBatch)
    becomes one operator argument per field, and a parameter that takes a number or a tensor takes
    a tensor, or None for its default. Where the function returns an argument itself, the operator
    returns a copy: a schema cannot say "sometimes the same tensor".
    """

    def register(function: Function) -> Function:
        name = function.__name__
        flat = with_flat_arguments(function)
        schema = torch.library.infer_schema(flat, mutates_args=list(mutates))
        LIBRARY.define(name + schema)  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, flat, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        flat_fake = with_flat_arguments(fake, inspect.signature(flat), function)
        torch.library.register_fake(f"{NAMESPACE}::{name}", flat_fake, lib=LIBRARY)
        return function

    return register


def flat_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments with each dataclass replaced by its fields."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if dataclasses.is_dataclass(value):
            flat |= {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        else:
            flat[name] = value
    return flat


def with_flat_arguments(
    function: Callable[..., Any],
    signature: inspect.Signature | None = None,
    like: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """`function`, called with the fields of its dataclass parameters, as an operator is.

    `signature` (flat) and `like` (whose parameters to rebuild) are given for a fake function.
    """
    hints = typing.get_type_hints(like or function)
    groups = {
        name: hint
        for name, hint in hints.items()
        if isinstance(hint, type) and dataclasses.is_dataclass(hint)
    }
    numbers = {name for name, hint in hints.items() if _is_number_or_tensor(hint)}
    flat_signature = signature or _flat_signature(function, hints, groups)

    @functools.wraps(function)
    def flat(*args: Any, **kwargs: Any) -> Any:
        bound = flat_signature.bind(*args, **kwargs)
        # The function's, so that no fake repeats them.
        bound.apply_defaults()
        given = {k: v for k, v in bound.arguments.items() if not (v is None and k in numbers)}
        for name, group in groups.items():
            fields = {field.name: given.pop(field.name) for field in dataclasses.fields(group)}
            given[name] = group(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            )
        inputs = {id(value) for value in given.values() if isinstance(value, torch.Tensor)}
        result = function(**given)
        if isinstance(result, tuple):
            return tuple(out.clone() if id(out) in inputs else out for out in result)
        return result.clone() if id(result) in inputs else result

    flat.__signature__ = flat_signature  # type: ignore[attr-defined]
    return flat


def _flat_signature(
    function: Callable[..., Any], hints: dict[str, Any], groups: dict[str, Any]
) -> inspect.Signature:
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if _is_number_or_tensor(hints[name]):
            parameter = (
                parameter.replace(annotation=torch.Tensor)
                if parameter.default is parameter.empty
                else parameter.replace(annotation=torch.Tensor | None, default=None)
            )
            parameters.append(parameter)
            continue
        if name not in groups:
            parameters.append(parameter.replace(annotation=_schema_type(hints[name])))
            continue
        field_hints = typing.get_type_hints(groups[name])
        parameters += [
            inspect.Parameter(
                field.name, parameter.kind, annotation=_schema_type(field_hints[field.name])
            )
            for field in dataclasses.fields(groups[name])
        ]
    result = hints["return"]
    return inspect.Signature(parameters, return_annotation=None if result is type(None) else result)


def _is_number_or_tensor(hint: Any) -> bool:
    kinds = set(typing.get_args(hint))
    return torch.Tensor in kinds and bool(kinds & {int, float})


def _schema_type(hint: Any) -> Any:
    """The annotation that torch's schemas know for ours: `tuple[int, ...]` is a sequence."""
    if typing.get_origin(hint) is tuple:
        return Sequence[typing.get_args(hint)[0]]  # type: ignore[misc]
    return hint

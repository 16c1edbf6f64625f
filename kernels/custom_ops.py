"""Ops of users: a Python file or folder of Triton ops, loaded and called with torch tensors."""

import functools
import hashlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

OP_NAME = "__quire_op_name__"
"""The attribute by which `register` marks a function."""
SCALARS = (int, float, bool, str)

Function = TypeVar("Function", bound=Callable[..., None])


@dataclass(frozen=True)
class Input:
    """Marks a tensor that the op reads: `Annotated[torch.Tensor, Input(torch.uint8, rank=3)]`.

    `dtype` and `rank` are checked at each call where given.
    """

    dtype: torch.dtype | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Output(Input):
    """Marks a tensor that the caller allocates and the op writes."""


def register(name: str) -> Callable[[Function], Function]:
    """Decorator: `CustomOpLibrary` exposes the function under `name`.

    Every parameter is a tensor annotated with `Input` or `Output`, or an int, float, bool or str.
    The function returns nothing.
    """

    def mark(function: Function) -> Function:
        setattr(function, OP_NAME, name)
        return function

    return mark


class CustomOp:
    """One op of a library; a call checks its tensors, then runs `torch.ops.<library>.<name>`."""

    def __init__(self, library: str, function: Callable[..., None]) -> None:
        self.name: str = getattr(function, OP_NAME)
        self.__doc__ = function.__doc__
        hints = typing.get_type_hints(function, include_extras=True)
        self._signature = inspect.signature(function)
        self._tensors = {
            name: role
            for name in self._signature.parameters
            if (role := _role(self.name, name, hints.get(name))) is not None
        }
        outputs = [name for name, role in self._tensors.items() if isinstance(role, Output)]
        if not outputs:
            raise ValueError(f"custom op {self.name}: no parameter is annotated with Output")
        self._run = torch.library.custom_op(
            f"{library}::{self.name}", _with_plain_hints(function), mutates_args=outputs
        )

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run the op; it writes its `Output` tensors.

        Raises:
            TypeError: other arguments than the op's.
            ValueError: a tensor of another dtype, rank or device than the op's first; nothing is
                written.
        """
        given = self._signature.bind(*args, **kwargs).arguments
        device: torch.device | None = None
        for name, role in self._tensors.items():
            tensor = given[name]
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{self.name}: {name} must be a tensor, got {type(tensor)}")
            if role.dtype not in (None, tensor.dtype):
                raise ValueError(f"{self.name}: {name} must be {role.dtype}, got {tensor.dtype}")
            if role.rank not in (None, tensor.ndim):
                raise ValueError(
                    f"{self.name}: {name} must have {role.rank} dimensions, "
                    f"got {list(tensor.shape)}"
                )
            device = device or tensor.device
            if tensor.device != device:
                raise ValueError(f"{self.name}: {name} must be on {device}, got {tensor.device}")
        self._run(**given)

    def __repr__(self) -> str:
        return f"<custom op {self.name}{self._signature}>"


class CustomOpLibrary:
    """The ops that a Python file, or the files of a folder, mark with `register`.

    An op is an attribute: `CustomOpLibrary("my_ops").grayscale(out, image)`. The files are code
    and run when they are loaded.

    Args:
        kernel_library: a `.py` file, or a folder whose `.py` files are loaded in order of name,
            those with a leading underscore left out.

    Raises:
        FileNotFoundError: nothing at that path.
        ValueError: no op, two of one name, or one whose parameters are not as `register` says.
    """

    def __init__(self, kernel_library: Path | str) -> None:
        path = Path(kernel_library).resolve()
        if not path.exists():
            raise FileNotFoundError(f"custom op library {path}: no such file or folder")
        files = sorted(path.glob("[!_]*.py")) if path.is_dir() else [path]
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        self._ops: dict[str, CustomOp] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            for function in _marked(_loaded(file, f"quire_custom_{digest}_{file.stem}")):
                name: str = getattr(function, OP_NAME)
                if name in self._files:
                    raise ValueError(f"custom op {name} is in {self._files[name]} and in {file}")
                self._files[name] = file
                self._ops[name] = CustomOp(f"quire_custom_{digest}", function)
        if not self._ops:
            raise ValueError(f"custom op library {path}: no function is marked with register")

    def __getattr__(self, name: str) -> CustomOp:
        ops: dict[str, CustomOp] = self.__dict__.get("_ops", {})
        if name not in ops:
            raise AttributeError(f"no custom op {name}; there are {', '.join(sorted(ops))}")
        return ops[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._ops]

    def __iter__(self) -> Iterator[str]:
        """Names of the ops."""
        return iter(self._ops)


def _with_plain_hints(function: Callable[..., None]) -> Callable[..., None]:
    """The function, annotated as torch's schemas know it: without `Annotated`."""
    plain = typing.get_type_hints(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)

    parameters = [p.replace(annotation=plain[p.name]) for p in signature.parameters.values()]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=None
    )
    return run


def _loaded(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"custom op library {file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    # As an import does: dataclasses and Triton look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        error.add_note(f"while loading the custom op library {file}")
        raise
    return module


def _marked(module: ModuleType) -> Iterator[Callable[..., None]]:
    for value in vars(module).values():
        is_own = inspect.isfunction(value) and value.__module__ == module.__name__
        if is_own and hasattr(value, OP_NAME):
            yield value


def _role(op: str, name: str, hint: Any) -> Input | None:
    """What a parameter's annotation says of its tensor; None for a scalar."""
    if hint in SCALARS:
        return None
    if typing.get_origin(hint) is typing.Annotated:
        kind, *marks = typing.get_args(hint)
        roles = [mark for mark in marks if isinstance(mark, Input)]
        if kind is torch.Tensor and len(roles) == 1:
            return roles[0]
    raise ValueError(
        f"custom op {op}: {name} must be annotated as Annotated[torch.Tensor, Input(...)], "
        f"Annotated[torch.Tensor, Output(...)], int, float, bool or str, got {hint}"
    )

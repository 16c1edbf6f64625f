"""Architectures from modules that the person who starts Quire names: `--custom-architectures`.

Such a module runs in every process of Quire with all its rights; it never comes from a model
folder or a hub. No torch.
"""

import functools
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from quire.config.errors import ConfigError, ModelError, QuireError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.registry import ARCHITECTURES, SupportedArchitecture
from quire.pipelines.architectures.spec import ModelSpec

logger = logging.getLogger(__name__)

_OPTION = "custom_architectures"


def registered_architectures(entries: Sequence[str]) -> tuple[SupportedArchitecture, ...]:
    """The rows of the modules that `entries` name, then Quire's own that they do not replace.

    An entry is `folder:module`, a module or package in that folder, or the name of a module that
    is installed. A module is imported once per process.

    Raises:
        ConfigError: a module is missing, fails, or its ARCHITECTURES are not what they should be.
    """
    rows: dict[str, SupportedArchitecture] = {}
    for entry in entries:
        for row in _rows(entry, _import(entry)):
            if row.name in rows:
                raise _wrong(entry, f"another row has the name {row.name} already")
            rows[row.name] = replace(row, read=functools.partial(_read, row.read, row.name))
    return (*rows.values(), *(row for row in ARCHITECTURES if row.name not in rows))


def module_files(entries: Sequence[str]) -> list[Path]:
    """The files of the modules that `entries` name, with those inside their packages, as far as
    this process has imported them."""
    names = [entry.rpartition(":")[2] for entry in entries]
    modules = [
        module
        for loaded, module in list(sys.modules.items())
        if any(f"{loaded}.".startswith(f"{name}.") for name in names)
    ]
    files = (getattr(module, "__file__", None) for module in modules)
    return [Path(file) for file in files if file]


def _rows(entry: str, module: ModuleType) -> Sequence[SupportedArchitecture]:
    rows = getattr(module, "ARCHITECTURES", None)
    if rows is None:
        raise _wrong(entry, "the module has no ARCHITECTURES")
    expected = "expected ARCHITECTURES to be a list of SupportedArchitecture"
    if not isinstance(rows, list | tuple):
        raise _wrong(entry, f"{expected}, found {type(rows).__name__}")
    for row in rows:
        if not isinstance(row, SupportedArchitecture):
            raise _wrong(entry, f"{expected}, found {type(row).__name__} in it")
    if not rows:
        raise _wrong(entry, f"{expected}, found an empty one")
    return rows


def _import(entry: str) -> ModuleType:
    had_torch = "torch" in sys.modules
    folder, colon, name = entry.rpartition(":")
    try:
        module = _import_file(entry, Path(folder), name) if colon else _import_installed(entry)
    except QuireError:
        raise
    except (Exception, SystemExit) as error:
        raise _wrong(entry, f"importing it failed: {_in_one_line(error)}") from error
    if "torch" in sys.modules and not had_torch:
        logger.warning(
            "custom architecture %s imports torch: the API process starts later and is larger; "
            "import torch inside the functions that need it",
            entry,
        )
    return module


def _import_installed(entry: str) -> ModuleType:
    if not all(part.isidentifier() for part in entry.split(".")):
        raise _wrong(entry, "expected folder:module or the name of a module")
    try:
        return importlib.import_module(entry)
    except ModuleNotFoundError as error:
        # One that the module itself imports is another mistake.
        if error.name is None or not f"{entry}.".startswith(f"{error.name}."):
            raise
        raise _wrong(entry, f"no module of that name; give folder:{entry} for a file") from None


def _import_file(entry: str, folder: Path, name: str) -> ModuleType:
    if not name.isidentifier():
        raise _wrong(entry, f"expected folder:module, and {name!r} is no module's name")
    folder = folder.expanduser().resolve()
    places = [folder / f"{name}.py", folder / name / "__init__.py"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise _wrong(entry, f"neither {places[0]} nor {places[1]} exists")
    loaded = sys.modules.get(name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path):
            return loaded
        raise _wrong(entry, f"a module {name} is loaded already; rename the file")
    other = importlib.util.find_spec(name)
    if other is not None and other.origin is not None and Path(other.origin).resolve() != path:
        # What imports the installed one later, in this process or in the worker, would get ours.
        raise _wrong(entry, f"a module {name} is installed already; rename the file")
    # Loaded by its place, so that sys.path stays as it is and the folder can shadow nothing.
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _read(read: Callable[[ConfigFile], ModelSpec], name: str, config: ConfigFile) -> ModelSpec:
    """The spec that `read` gives; whatever else happens is an error with the architecture's name."""
    try:
        spec = read(config)
    except QuireError:
        raise
    except Exception as error:
        raise ModelError(
            f"{config.name}: the custom architecture {name} cannot read it: {_in_one_line(error)}"
        ) from error
    if not isinstance(spec, ModelSpec):
        raise ModelError(
            f"{config.name}: expected the custom architecture {name} to read a ModelSpec, "
            f"found {type(spec).__name__}"
        )
    return spec


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _wrong(entry: str, what: str) -> ConfigError:
    return ConfigError(f"{_OPTION}: {entry}: {what}")

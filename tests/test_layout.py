"""What ends up in the wheel: every code folder, every resource, nothing of tests and tools."""

import fnmatch
import runpy
import tomllib
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
TOP = ("config", "kernels", "pipelines", "server")
NOT_SHIPPED = ("__pycache__", ".mypy_cache", ".ruff_cache")


def code_folders() -> set[str]:
    return {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in TOP
        for path in (ROOT / top).rglob("*.py")
    }


def arguments_of_setup(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What setup.py asks of setuptools, without building anything."""
    given: dict[str, object] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_every_code_folder_is_a_package() -> None:
    missing = [
        folder
        for folder in code_folders()
        if not (ROOT / folder.replace(".", "/") / "__init__.py").is_file()
    ]

    assert missing == []


def test_tests_are_not_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_wheel_holds_every_code_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = arguments_of_setup(monkeypatch)["packages"]

    assert set(packages) == {f"quire.{folder}" for folder in code_folders()}  # type: ignore[call-overload]


def test_each_package_is_found_in_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = arguments_of_setup(monkeypatch)["package_dir"]

    assert folders == {f"quire.{top}": top for top in TOP}


def test_every_resource_is_declared_as_package_data() -> None:
    """A file that is not Python is in the wheel only when a pattern names it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]
    undeclared = [
        path.relative_to(ROOT).as_posix()
        for top in TOP
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".so")
        if not set(path.parts) & set(NOT_SHIPPED)
        if not is_declared(path, top, patterns)
    ]

    assert undeclared == []


def is_declared(path: Path, top: str, patterns: dict[str, list[str]]) -> bool:
    inside = path.relative_to(ROOT / top)
    return any(
        len(Path(pattern).parts) == len(inside.parts)
        and all(map(fnmatch.fnmatch, inside.parts, Path(pattern).parts))
        for pattern in patterns.get(f"quire.{top}", [])
    )


def test_the_demo_model_and_the_type_marker_are_there() -> None:
    assert (ROOT / "pipelines" / "py.typed").is_file()
    assert (ROOT / "pipelines" / "demo_model" / "model.safetensors").is_file()

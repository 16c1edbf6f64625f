"""Imports point one way: config <- kernels <- pipelines <- server, and the server needs no torch."""

import ast
import functools
import graphlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("config", "kernels", "pipelines", "server")
TORCH_FREE = (
    "config",
    "server",
    "pipelines.core",
    "pipelines.scheduler",
    "pipelines.text",
    "pipelines.tokenizer",
    "pipelines.chat_template",
    "pipelines.embedding_config",
    "pipelines.encoder_plan",
    "pipelines.hf",
    "pipelines.model_task",
    "pipelines.architectures.load",
    "pipelines.kv_cache.manager",
    "pipelines.kv_cache.page_group",
    "pipelines.kv_cache.page_pool",
    "pipelines.kv_cache.prefix_cache",
    "pipelines.kv_cache.memory_plan",
    "pipelines.kv_cache.params",
)


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name without `quire.` -> file."""
    found = {}
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, those in functions and `TYPE_CHECKING` included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {own for name in names if (own := _own_module(name))}


def _own_module(name: str) -> str | None:
    """`quire.config.settings.load` -> `config.settings`; None for the modules of others."""
    if not name.startswith("quire."):
        return None
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in modules():
        parts.pop()
    assert parts, f"{name} does not exist"
    return ".".join(parts)


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_one_above_it(layer: str) -> None:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    wrong = [
        f"{module} imports {other}"
        for module, path in modules().items()
        if module.partition(".")[0] == layer
        for other in imports(path)
        if other.partition(".")[0] in above
    ]

    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imports(path) - {module} for module, path in modules().items()}

    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(error.args[1]))


def test_imports_inside_functions_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import os, quire.config\n"
        "def late():\n    from quire.config.settings import load\n    import torch\n"
    )

    assert imports(path) == {"config", "config.settings"}


def torch_free_modules() -> list[str]:
    return sorted(
        f"quire.{module}"
        for module in modules()
        if any(module == name or module.startswith(f"{name}.") for name in TORCH_FREE)
        if not module.endswith("__main__")
    )


def test_every_torch_free_name_exists() -> None:
    assert [name for name in TORCH_FREE if name not in modules()] == []


def test_the_api_process_imports_no_torch_and_no_flat_names() -> None:
    """Imported for real, in a fresh interpreter started as Quire is started."""
    program = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}

    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(torch_free_modules())],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )

    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded & {"torch", "transformers", "triton", *LAYERS} == set()

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Tool = Callable[[str], ModuleType]


def findings(tool: Tool, root: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [str(finding) for finding in tool("check_budgets").check(root)]


def function(name: str, lines: int, decorator: str = "") -> str:
    return f"{decorator}def {name}():\n" + "    x = 1\n" * (lines - 1)


def test_a_clean_tree_has_no_findings(tool: Tool, tmp_path: Path) -> None:
    files = {
        "server/__init__.py": "",
        "server/app.py": '"""Doc."""\n\nTABLE = {"a": 1}\nTYPES: dict[str, int] = {}\n',
        "config/__init__.py": "import os\n\nHOME = os.environ.get('HOME')\n",
        "tests/test_app.py": "rows = []\n",
    }

    assert findings(tool, tmp_path, files) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n" * 401, "file has 401 lines, at most 400"),
        (function("f", 61), "f has 61 lines, at most 60"),
        (function("f", 151, "@triton.jit\n"), "f has 151 lines, at most 150"),
        (function("f", 151, "@triton.jit(debug=True)\n"), "f has 151 lines, at most 150"),
        ("def f(a, b, c, d, e, f, g, h, i): ...\n", "f has 9 parameters, at most 8"),
        ("def f(a, b, c, d, e, f, g, h, *, i): ...\n", "f has 9 parameters, at most 8"),
        ("x = 1  # TODO later\n", "forbidden word TODO"),
        ("def f():\n    raise NotImplementedError\n", "forbidden word NotImplementedError"),
        ("socket.recv_pyobj()\n", "forbidden word recv_pyobj"),
        ("import pickle\n", "import of pickle"),
        ("def f():\n    from cloudpickle import loads\n", "import of cloudpickle"),
        ("try:\n    x = 1\nexcept Exception:\n    pass\n", "broad except"),
        ("try:\n    x = 1\nexcept:\n    pass\n", "broad except"),
        ("try:\n    x = 1\nexcept (OSError, BaseException):\n    x = 2\n", "broad except"),
        ("import os\nx = os.environ['A']\n", "the environment is read in config/ only"),
        ("from os import getenv\n", "the environment is read in config/ only"),
        ("cache = {}\n", "module-level mutable state: cache"),
        ("rows: list[int] = [1]\n", "module-level mutable state: rows"),
        ("seen = set()\n", "module-level mutable state: seen"),
        ("X = 1\ndef f():\n    global X\n    X = 2\n", "global X: module-level mutable state"),
        ("TABLE = {}\ndef f():\n    TABLE['a'] = 1\n", "TABLE is a constant and is changed here"),
        ("TABLE = []\ndef f():\n    TABLE.append(1)\n", "TABLE is a constant and is changed here"),
    ],
)
def test_each_broken_rule_is_found(tool: Tool, tmp_path: Path, text: str, message: str) -> None:
    files = {"pipelines/__init__.py": "", "pipelines/module.py": text}

    found = findings(tool, tmp_path, files)

    assert len(found) == 1
    assert found[0].startswith("pipelines/module.py:")
    assert message in found[0]


@pytest.mark.parametrize(
    "text",
    [
        function("kernel", 150, "@triton.jit\n"),
        "@triton.jit\ndef kernel(a, b, c, d, e, f, g, h, i, j): ...\n",
        "def f(self, a, b, c, d, e, f, g, h): ...\n",
        "def f(a, b, c, d, e, f, g, h, *, i=1, j=2): ...\n",
        "try:\n    x = 1\nexcept BaseException:\n    x = 2\n    raise\n",
        "try:\n    x = 1\nexcept OSError:\n    x = 2\n",
        "__all__ = ['a']\n",
        "def f():\n    rows = []\n    rows.append(1)\n",
    ],
)
def test_what_the_rules_allow_is_not_found(tool: Tool, tmp_path: Path, text: str) -> None:
    assert findings(tool, tmp_path, {"kernels/__init__.py": "", "kernels/module.py": text}) == []


def test_a_code_folder_without_init_is_found(tool: Tool, tmp_path: Path) -> None:
    files = {"server/__init__.py": "", "server/text/detokenizer.py": "", "tests/__init__.py": ""}

    assert findings(tool, tmp_path, files) == [
        "server/text:1: code folder without __init__.py",
        "tests:1: __init__.py under tests",
    ]


def test_a_boundary_that_catches_nothing_is_found(tool: Tool, tmp_path: Path) -> None:
    files = {"server/__init__.py": "", "server/middleware.py": "x = 1\n"}

    assert findings(tool, tmp_path, files) == [
        "server/middleware.py:1: listed as a boundary, but has no broad except"
    ]

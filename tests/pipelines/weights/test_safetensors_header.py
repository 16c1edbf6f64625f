"""Damaged safetensors files: each is refused in one line, or is what the library reads too."""

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.weights.file_reader import read_bytes
from quire.pipelines.weights.gguf_header import read_gguf_header
from quire.pipelines.weights.safetensors_header import read_header
from quire.pipelines.weights.tensor_entry import TensorEntry

FUZZER = Path(__file__).parents[2] / "shared" / "fuzz" / "safetensors_files.py"
MUTANTS = 10_000


def test_ten_thousand_mutants_are_refused_or_read_as_the_library_reads_them(tmp_path: Path) -> None:
    """In a process of its own: a crash is a failure of this test only."""
    done = subprocess.run(
        [sys.executable, "-P", str(FUZZER), str(tmp_path), str(MUTANTS)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["wrong"] == []
    assert seen["refused"] + seen["served"] == MUTANTS
    # Neither all nor nothing: bytes of data may change, and blanks in the header.
    assert seen["served"] > 100 and seen["refused"] > 1000


def write(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


ENTRY = b'{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,2]}}', b"xx", "expected 0 bytes for U8"),
        (b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", b"xx", "the key 'a' twice"),
        (b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"xx", "twice"),
        (('{"a":' + ENTRY.decode() + "}").encode("utf-16"), b"xx", "header: expected JSON"),
        (b"\xef\xbb\xbf{" + b'"a":' + ENTRY + b"}", b"xx", "header: expected JSON"),
        (b' {"a":' + ENTRY + b"}", b"xx", "header: expected a JSON object"),
        (b'{"__metadata__":{"x":1},"a":' + ENTRY + b"}", b"xx", "__metadata__: expected a JSON ob"),
        (b'{"__metadata__":[],"a":' + ENTRY + b"}", b"xx", "__metadata__: expected a JSON object"),
        (
            b'{"a":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
            b"",
            "expected 147573952589676412928 bytes for F64",
        ),
        (
            b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}',
            b"",
            "header: expected JSON, found Exceeds the limit",
        ),
        (b"[" * 100_000, b"", "header: expected JSON"),
    ],
)  # fmt: skip
def test_what_the_library_refuses_is_refused(
    tmp_path: Path, header: bytes, data: bytes, message: str
) -> None:
    path = write(tmp_path / "model.safetensors", header, data)

    with pytest.raises(ModelError) as caught:
        read_header(path)

    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blanks_after_the_header_are_padding(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", b'{"a":' + ENTRY + b"}   ", b"xx")

    assert read_header(path)["a"].shape == (2,)


def many(count: int, entry: str) -> bytes:
    return ("{" + ",".join(f'"{max(index, 1)}":{entry}' for index in range(count)) + "}").encode()


HUGE: dict[str, bytes] = {
    "dimensions": b'{"a":{"dtype":"U8","shape":[' + b"9," * 400_000 + b'1],"data_offsets":[0,0]}}',
    "digits": b'{"a":{"dtype":"U8","shape":['
    + b"9" * 4000
    + b",9" * 60
    + b'],"data_offsets":[0,0]}}',
    "names": many(60_000, '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_header_that_is_long_to_compute_is_refused_at_once(name: str, tmp_path: Path) -> None:
    start = time.monotonic()

    with pytest.raises(ModelError):
        read_header(write(tmp_path / "a.safetensors", HUGE[name], b""))

    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", ["a\\n\\u001b[31mb", "\\ud800", "x" * 10_000])
@pytest.mark.parametrize("shape", ["[2]", "[-1]"])
def test_names_that_cannot_be_printed_stay_one_line(name: str, shape: str, tmp_path: Path) -> None:
    header = f'{{"{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[0,2]}}}}'

    with pytest.raises(ModelError) as caught:
        read_header(write(tmp_path / "a.safetensors", header.encode(), b"xxx"))

    text = str(caught.value)
    assert text.isprintable() and len(text) < 800


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    header = (
        b'{"none":{"dtype":"F32","shape":[0,3],"data_offsets":[4,4]},'
        b'"one":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
    )

    found = read_header(write(tmp_path / "a.safetensors", header, b"abcd"))

    assert {name: entry.num_bytes for name, entry in found.items()} == {"one": 4, "none": 0}


@pytest.mark.parametrize("read", [read_header, read_gguf_header, ConfigFile.read])
def test_a_file_that_may_not_be_read_is_one_line(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = write(tmp_path / "a", b"{}", b"")
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)

    with pytest.raises(ModelError, match="a: cannot be read: Permission denied$"):
        read(path)


def test_a_file_that_goes_after_it_was_checked_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", b'{"a":' + ENTRY + b"}", b"xx")
    entry = read_header(path)["a"]
    path.unlink()

    with pytest.raises(ModelError, match=r"a.safetensors: cannot be read: No such file"):
        read_bytes(entry)


@pytest.mark.parametrize("has_library", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("cut", [0, 1, 1_500_000, 3_000_001])
def test_a_large_tensor_is_read_whole_or_refused_where_it_ends(
    cut: int, has_library: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_library:
        monkeypatch.setattr("quire.pipelines.weights.file_reader.library", lambda: None)
    data = bytes(range(251)) * 12_000
    path = tmp_path / "a"
    path.write_bytes(b"header" + data[: len(data) - cut])
    entry = TensorEntry(path, "m", "U8", (len(data),), 6, 6 + len(data))

    if cut == 0:
        assert read_bytes(entry, threads=3).tobytes() == data
        return
    left = max(0, len(data) - cut)
    with pytest.raises(ModelError, match=f"m: expected {len(data)} bytes, found {left} bytes"):
        read_bytes(entry, threads=3)

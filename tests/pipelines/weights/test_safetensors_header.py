"""Damaged safetensors files: each is refused in one line, or is what the library reads too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quire.config.errors import ModelError
from quire.pipelines.weights.safetensors_header import read_header

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

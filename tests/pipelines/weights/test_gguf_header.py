"""GGUF headers: whole ones say what the `gguf` package says, broken ones are refused in one line."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from parity.gguf_writer import all_of, write_gguf
from parity.random_models import make_random_model

from quire.config.errors import ModelError
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.weights.checkpoint import load_weights, match_weights
from quire.pipelines.weights.gguf_file import is_gguf, read_gguf
from quire.pipelines.weights.gguf_header import GGML_TYPES, read_gguf_header

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def info(name: bytes = b"a", shape: Sequence[int] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def header(
    pairs: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: bytes = bytes(64),
) -> bytes:
    numbers = counts or (len(infos), len(pairs))
    body = magic + struct.pack("<IQQ", version, *numbers) + b"".join(pairs) + b"".join(infos)
    return body + bytes(-len(body) % 32) + data


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_types_are_those_of_the_gguf_package() -> None:
    found = {
        kind: (row.name, row.block_elements, row.block_bytes) for kind, row in GGML_TYPES.items()
    }

    assert found == {
        int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType
    }


def test_metadata_of_every_type_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    expected: dict[str, object] = {"general.architecture": "llama"}
    for kind, value in (
        ("uint8", 255),
        ("int8", -128),
        ("uint16", 65535),
        ("int16", -32768),
        ("uint32", 2**32 - 1),
        ("int32", -(2**31)),
        ("uint64", 2**64 - 1),
        ("int64", -(2**63)),
        ("float32", 0.5),
        ("float64", 0.1),
        ("bool", True),
        ("string", "é\n"),
        ("array", ["a", "", "ü"]),
        ("array", [1, 2, 3]),
        ("array", [0.5, 2.0]),
        ("array", [True, False]),
        ("array", [[1, 2], [3]]),
    ):
        key = f"a.{kind}{len(expected)}"
        getattr(writer, f"add_{kind}")(key, value)
        expected[key] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    assert dict(read_gguf_header(tmp_path / "a.gguf").metadata) == expected


@pytest.mark.parametrize("alignment", [None, 64, 8192])
def test_tensors_lie_where_the_gguf_package_reads_them(
    alignment: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    rng = np.random.default_rng(0)
    writer.add_tensor("floats", rng.normal(size=(3, 5)).astype(np.float32))
    writer.add_tensor("halves", rng.normal(size=(2, 3, 4)).astype(np.float16))
    blocks = gguf.quants.quantize(
        rng.normal(size=(7, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q4_0
    )
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = read_gguf_header(path)

    reader = gguf.GGUFReader(path)
    assert found.data_start == reader.data_offset
    assert list(found.entries) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        entry = found.entries[tensor.name]
        assert entry.dtype == tensor.tensor_type.name
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        assert (entry.begin, entry.num_bytes) == (tensor.data_offset, tensor.n_bytes)


def test_version_2_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", header(infos=[info()], version=2))

    assert read_gguf_header(path).entries["a"].shape == (4,)


HUGE = 2**63
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "magic: expected 4 bytes, found 0 left"),
    "magic": (header(magic=b"GGML"), "magic: expected 'GGUF', found 'GGML'"),
    "version 1": (header(version=1), "version: expected 2 or 3, little-endian, found 1"),
    "big-endian": (header(version=3 << 24), "found 3, big-endian"),
    "many tensors": (header(counts=(HUGE, 0)), "tensor count: expected at most"),
    "many keys": (header(counts=(0, HUGE)), "metadata count: expected at most"),
    "cut": (header([pair(b"k", STRING, text(b"v"))])[:40], "expected"),
    "long key": (
        header([struct.pack("<Q", HUGE)], data=bytes(999)),
        "metadata key 0: expected a string of at most 65535 bytes",
    ),
    "empty key": (header([pair(b"", U8, b"1")]), "metadata key 0: expected printable ASCII"),
    "line break in a key": (header([pair(b"a\nb", U8, b"1")]), "printable ASCII, found 'a\\nb'"),
    "key of other bytes": (header([pair(b"\xff", U8, b"1")]), "expected UTF-8, found byte 0xff"),
    "key twice": (header([pair(b"k", U8, b"1")] * 2), "k: expected each key once"),
    "value type": (
        header([pair(b"k", 13, b"1")]),
        "k: expected a value type from 0 to 12, found 13",
    ),
    "item type": (header([pair(b"k", ARRAY, array(13, 1, b""))]), "k: expected a value type"),
    "bool of 2": (header([pair(b"k", BOOL, b"\2")]), "k: expected true (1) or false (0), found 2"),
    "long string": (header([pair(b"k", STRING, struct.pack("<Q", HUGE))]), "k: expected a string"),
    "string past the end": (
        header([pair(b"k", STRING, struct.pack("<Q", 4096))]),
        "k: expected 4096 bytes, found",
    ),
    "string of other bytes": (header([pair(b"k", STRING, text(b"\xc3"))]), "k: expected UTF-8"),
    "long array": (header([pair(b"k", ARRAY, array(U32, HUGE, b""))]), "k: expected at most"),
    "array of 2^64 bytes": (
        header([pair(b"k", ARRAY, array(U64, 2**61, b""))]),
        "k: expected at most",
    ),
    "deep array": (
        header(
            [
                pair(
                    b"k",
                    ARRAY,
                    array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, array(U8, 1, b"1")))),
                )
            ]
        ),
        "k: expected arrays at most 3 deep",
    ),
    "alignment 0": (
        header([pair(b"general.alignment", U32, bytes(4))]),
        "general.alignment: expected a power of two up to 1048576, found 0",
    ),
    "alignment 48": (
        header([pair(b"general.alignment", U32, struct.pack("<I", 48))]),
        "general.alignment: expected a power of two",
    ),
    "great alignment": (
        header([pair(b"general.alignment", U32, struct.pack("<I", 2**21))]),
        "general.alignment: expected a power of two",
    ),
    "alignment of text": (
        header([pair(b"general.alignment", STRING, text(b"32"))]),
        "general.alignment: expected a power of two",
    ),
    "no dimensions": (
        header(infos=[info(shape=())], data=bytes(99)),
        "a: expected 1 to 4 dimensions",
    ),
    "5 dimensions": (
        header(infos=[info(shape=(1,) * 5)]),
        "a: expected 1 to 4 dimensions, found 5",
    ),
    "size 0": (header(infos=[info(shape=(4, 0))]), "a: expected rows of whole F32 blocks"),
    "product of 2^64": (
        header(infos=[info(shape=(2**32, 2**32))]),
        "a: expected a file of at least",
    ),
    "product of 2^256": (
        header(infos=[info(shape=(2**63,) * 4)]),
        "a: expected a file of at least",
    ),
    "no whole block": (
        header(infos=[info(shape=(33,), kind=8)]),
        "a: expected rows of whole Q8_0 blocks of 32 numbers, found shape [33]",
    ),
    "removed type": (header(infos=[info(kind=4)]), "a: expected a ggml type"),
    "unknown type": (header(infos=[info(kind=2**31)]), "a: expected a ggml type"),
    "offset": (header(infos=[info(offset=16)]), "a: expected an offset that is a multiple of 32"),
    "offset past the end": (header(infos=[info(offset=64)]), "a: expected a file of at least"),
    "offset of 2^63": (header(infos=[info(offset=HUGE)]), "a: expected a file of at least"),
    "overlap": (
        header(infos=[info(shape=(16,)), info(b"b", offset=32)]),
        "b: expected data after that of a",
    ),
    "tensor twice": (
        header(infos=[info(), info(offset=32)]),
        "a: expected each tensor once",
    ),
    "long name": (
        header(infos=[info(b"a" * 65)]),
        "tensor 0: expected a string of at most 64 bytes, found 65 bytes",
    ),
    "line break in a name": (header(infos=[info(b"a\n")]), "tensor 0: expected printable ASCII"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_header_is_refused_in_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", data)

    with pytest.raises(ModelError) as caught:
        read_gguf_header(path)

    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_header_longer_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.pipelines.weights.gguf_header.MAX_HEADER_BYTES", 64)
    pairs = [pair(b"k", STRING, text(b"v" * 60))]

    with pytest.raises(ModelError, match="k: .*left of the longest header"):
        read_gguf_header(write(tmp_path / "a.gguf", header(pairs)))


def test_arrays_may_have_so_many_items_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.pipelines.weights.gguf_header.MAX_ITEMS", 3)
    two = array(U8, 2, b"12")

    with pytest.raises(ModelError, match="b: expected at most 1 "):
        read_gguf_header(
            write(tmp_path / "a.gguf", header([pair(b"a", ARRAY, two), pair(b"b", ARRAY, two)]))
        )


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="file not found"):
        read_gguf_header(tmp_path / "a.gguf")


def test_files_are_known_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()

    assert is_gguf(Path("a.gguf"))
    assert not is_gguf(Path("a.safetensors"))
    assert not is_gguf(tmp_path / "folder.gguf")


def split(path: Path) -> list[Path]:
    """A model in files of ten tensors each."""
    model = make_random_model("Llama", num_hidden_layers=2)
    write_gguf(model, path, all_of("Q8_0"), split_max_tensors=10)
    return sorted(path.parent.glob("*.gguf"))


def test_a_split_model_is_read_whole(tmp_path: Path) -> None:
    paths = split(tmp_path / "model.gguf")
    whole = write_gguf(
        make_random_model("Llama", num_hidden_layers=2), tmp_path / "one", all_of("Q8_0")
    ).rename(tmp_path / "whole.gguf")

    file = read_gguf(paths[0])

    assert [path.name for path in paths] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    expected = read_gguf_header(whole).entries
    assert file.entries.keys() == expected.keys()
    assert {name: entry.num_bytes for name, entry in file.entries.items()} == {
        name: entry.num_bytes for name, entry in expected.items()
    }
    match_weights(load_weights(paths[0]), load_model_spec(paths[0]))


def rename_second(paths: list[Path]) -> Path:
    paths[1].unlink()
    return paths[0]


def swap(paths: list[Path]) -> Path:
    paths[1].write_bytes(paths[2].read_bytes())
    return paths[0]


def drop_count(paths: list[Path]) -> Path:
    return paths[0].rename(paths[0].with_name("model.gguf"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda paths: paths[1], "expected the first file of 3, model-00001-of-00003.gguf"),
        (rename_second, "model-00002-of-00003.gguf: file not found"),
        (swap, "model-00002-of-00003.gguf: split.no: expected 1, as the file's name says"),
        (drop_count, "model.gguf: split.count: expected 1, as the file's name says, found 3"),
    ],
)
def test_a_split_model_that_is_not_whole_is_refused(
    damage: Callable[[list[Path]], Path], message: str, tmp_path: Path
) -> None:
    path = damage(split(tmp_path / "model.gguf"))

    with pytest.raises(ModelError, match=message):
        read_gguf(path)

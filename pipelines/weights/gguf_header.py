"""The header of a GGUF file, checked against the file. No torch.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3: magic, version,
counts, key-value pairs, tensor infos, padding, data. No size is believed before it was compared
with what is left of the file, and Python's integers do not overflow.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from quire.config.errors import ModelError
from quire.pipelines.weights.tensor_entry import TensorEntry

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1024**2
MAX_HEADER_BYTES = 256 * 1024**2
"""The headers of the largest vocabularies have a tenth of it."""
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_ITEMS = 4 * 1024**2
"""Of all arrays together; a quarter million tokens have a million scores, types and merges."""
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 64
MAX_DIMENSIONS = 4
MAX_DEPTH = 3
"""Of arrays in arrays."""

_STRING, _BOOL, _ARRAY = 8, 7, 9
_NUMBERS: Mapping[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_LEAST_BYTES: Mapping[int, int] = {
    **{kind: np.dtype(number).itemsize for kind, number in _NUMBERS.items()},
    _BOOL: 1,
    _STRING: 8,
    _ARRAY: 12,
}
"""Of a value of each type; what an array of them must have in the file."""


@dataclass(frozen=True, slots=True)
class GgmlType:
    """`block_bytes` in the file hold `block_elements` numbers of a row."""

    name: str
    block_elements: int
    block_bytes: int


GGML_TYPES: Mapping[int, GgmlType] = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    9: GgmlType("Q8_1", 32, 40),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    15: GgmlType("Q8_K", 256, 292),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1),
    25: GgmlType("I16", 1, 2),
    26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8),
    28: GgmlType("F64", 1, 8),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
    40: GgmlType("NVFP4", 64, 36),
    41: GgmlType("Q1_0", 128, 18),
}
"""By their number in a file; those that Quire computes with are in `gguf_encoding`."""


@dataclass(frozen=True)
class GgufHeader:
    """`metadata` by key, `entries` by the file's own tensor names, `data_start` in bytes."""

    metadata: Mapping[str, object]
    entries: Mapping[str, TensorEntry]
    data_start: int


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check all of the file but the tensors' data.

    Raises:
        ModelError: one line that names the file, the key or tensor, expected and found.
    """
    if not path.is_file():
        raise ModelError(f"{path}: file not found")
    try:
        with path.open("rb") as file:
            return _HeaderReader(path, file, os.fstat(file.fileno()).st_size).read()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None


class _HeaderReader:
    """Reads from the file's start; `_position` counts the bytes taken."""

    def __init__(self, path: Path, file: BinaryIO, file_bytes: int) -> None:
        self._path = path
        self._file = file
        self._file_bytes = file_bytes
        self._limit = min(file_bytes, MAX_HEADER_BYTES)
        self._position = 0
        self._items = 0

    def read(self) -> GgufHeader:
        if (magic := self._take(4, "magic")) != MAGIC:
            raise self._wrong("magic", repr(MAGIC)[1:], repr(magic)[1:])
        version = self._integer(4, "version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
            found = f"{swapped}, big-endian" if swapped in VERSIONS else str(version)
            raise self._wrong("version", "2 or 3, little-endian", found)
        tensor_count = self._count("tensor count", MAX_TENSORS, least_bytes=33)
        key_count = self._count("metadata count", MAX_KEYS, least_bytes=14)
        metadata: dict[str, object] = {}
        for index in range(key_count):
            key = self._name(f"metadata key {index}", MAX_KEY_BYTES)
            if key in metadata:
                raise self._wrong(key, "each key once", "it twice")
            kind = self._integer(4, key)
            metadata[key] = self._value(key, kind, 0)
        alignment = self._alignment(metadata)
        infos = [self._tensor_info(index) for index in range(tensor_count)]
        data_start = -(-self._position // alignment) * alignment
        entries: dict[str, TensorEntry] = {}
        for name, kind, shape, offset in infos:
            if name in entries:
                raise self._wrong(name, "each tensor once", "it twice")
            entries[name] = self._entry(name, kind, shape, offset, (data_start, alignment))
        self._refuse_overlaps(entries)
        return GgufHeader(metadata, entries, data_start)

    def _wrong(self, key: str, expected: str, found: str) -> ModelError:
        return ModelError(f"{self._path}: {_short(key)}: expected {expected}, found {found}")

    def _take(self, size: int, what: str) -> bytes:
        """The next `size` bytes, of which the header must have so many left."""
        left = self._limit - self._position
        if size > left:
            limit = "" if self._limit == self._file_bytes else " of the longest header"
            raise self._wrong(what, f"{size} bytes", f"{left} left{limit}")
        data = self._file.read(size)
        if len(data) != size:
            raise self._wrong(what, f"{size} bytes", f"{len(data)}: the file was cut")
        self._position += size
        return data

    def _integer(self, size: int, what: str) -> int:
        return int.from_bytes(self._take(size, what), "little")

    def _count(self, what: str, most: int, least_bytes: int) -> int:
        """A count of things of which each takes at least so many bytes."""
        count = self._integer(8, what)
        most = min(most, (self._limit - self._position) // least_bytes)
        if count > most:
            raise self._wrong(what, f"at most {most} in {self._file_bytes} bytes", str(count))
        return count

    def _text(self, what: str, most: int) -> str:
        size = self._integer(8, what)
        if size > most:
            raise self._wrong(what, f"a string of at most {most} bytes", f"{size} bytes")
        try:
            return self._take(size, what).decode()
        except UnicodeDecodeError as error:
            raise self._wrong(what, "UTF-8", f"byte {error.object[error.start]:#04x}") from None

    def _name(self, what: str, most: int) -> str:
        name = self._text(what, most)
        # Names are printed in errors, of one line each.
        if not name or not name.isascii() or not name.isprintable():
            raise self._wrong(what, "printable ASCII", ascii(_short(name)))
        return name

    def _value(self, key: str, kind: int, depth: int) -> object:
        if kind in _NUMBERS:
            return self._numbers(key, kind, 1)[0]
        if kind == _BOOL:
            return self._bools(key, 1)[0]
        if kind == _STRING:
            return self._text(key, MAX_HEADER_BYTES)
        if kind != _ARRAY:
            raise self._wrong(key, "a value type from 0 to 12", str(kind))
        if depth == MAX_DEPTH:
            raise self._wrong(key, f"arrays at most {MAX_DEPTH} deep", "deeper ones")
        return self._array(key, depth + 1)

    def _array(self, key: str, depth: int) -> list[object]:
        kind = self._integer(4, key)
        if kind not in _LEAST_BYTES:
            raise self._wrong(key, "a value type from 0 to 12", str(kind))
        count = self._count(key, MAX_ITEMS - self._items, _LEAST_BYTES[kind])
        self._items += count
        if kind in _NUMBERS:
            return self._numbers(key, kind, count)
        if kind == _BOOL:
            return self._bools(key, count)
        return [self._value(key, kind, depth) for _ in range(count)]

    def _numbers(self, key: str, kind: int, count: int) -> list[object]:
        number = np.dtype(_NUMBERS[kind])
        found: list[object] = np.frombuffer(
            self._take(number.itemsize * count, key), number
        ).tolist()
        return found

    def _bools(self, key: str, count: int) -> list[object]:
        data = self._take(count, key)
        if data.strip(b"\0\1"):
            raise self._wrong(key, "true (1) or false (0)", str(max(data)))
        return [byte == 1 for byte in data]

    def _alignment(self, metadata: Mapping[str, object]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or not 0 < alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            expected = f"a power of two up to {MAX_ALIGNMENT}"
            raise self._wrong("general.alignment", expected, _short(ascii(alignment)))
        return alignment

    def _tensor_info(self, index: int) -> tuple[str, int, tuple[int, ...], int]:
        """Name, type, shape with the rows first, and offset in the data."""
        name = self._name(f"tensor {index}", MAX_NAME_BYTES)
        dimensions = self._integer(4, name)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._wrong(name, f"1 to {MAX_DIMENSIONS} dimensions", str(dimensions))
        sizes = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions, name))
        return name, self._integer(4, name), tuple(reversed(sizes)), self._integer(8, name)

    def _entry(
        self, name: str, kind: int, shape: tuple[int, ...], offset: int, data: tuple[int, int]
    ) -> TensorEntry:
        start, alignment = data
        if kind not in GGML_TYPES:
            raise self._wrong(name, "a ggml type that has a number of its own", str(kind))
        stored = GGML_TYPES[kind]
        if min(shape) < 1 or shape[-1] % stored.block_elements:
            expected = f"rows of whole {stored.name} blocks of {stored.block_elements} numbers"
            raise self._wrong(name, expected, f"shape {list(shape)}")
        if offset % alignment:
            raise self._wrong(name, f"an offset that is a multiple of {alignment}", str(offset))
        num_bytes = prod(shape) // stored.block_elements * stored.block_bytes
        begin = start + offset
        if begin + num_bytes > self._file_bytes:
            raise self._wrong(
                name,
                f"a file of at least {begin + num_bytes} bytes for {stored.name} {list(shape)}",
                f"{self._file_bytes} bytes",
            )
        return TensorEntry(self._path, name, stored.name, shape, begin, begin + num_bytes)

    def _refuse_overlaps(self, entries: Mapping[str, TensorEntry]) -> None:
        end, before = 0, ""
        for entry in sorted(entries.values(), key=lambda entry: entry.begin):
            if entry.begin < end:
                raise self._wrong(
                    entry.name, f"data after that of {before}", f"data at byte {entry.begin}"
                )
            end, before = entry.end, entry.name


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."

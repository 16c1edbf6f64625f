"""The header of a safetensors file, checked against the file. No torch.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, a JSON
object, then the data, which the tensors' `data_offsets` must cover without gap or overlap).
"""

import json
import os
from collections import Counter
from math import prod
from pathlib import Path
from typing import Annotated

import msgspec

from quire.config.errors import ModelError
from quire.pipelines.weights.tensor_entry import TensorEntry

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "BF16": 2,
    "F16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
"""Sizes are checked of these; tensors of other formats are refused by name."""


_MAX_DIMENSIONS = 64
"""Of torch's tensors; the product of millions of sizes takes minutes."""


class _Fields(msgspec.Struct):
    dtype: str
    shape: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)], ...],
        msgspec.Meta(max_length=_MAX_DIMENSIONS),
    ]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file, in the order of their data.

    Raises:
        ModelError: the file is missing, truncated, or its header and its size do not agree.
    """
    text, file_bytes = _header_text(path)
    try:
        # The library reads UTF-8 only, and each key once: what it refuses is refused here.
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: header: expected JSON, found {error}") from None
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise ModelError(f"{path}: header: expected a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelError(f"{path}: __metadata__: expected a JSON object of strings")
    data_start = 8 + len(text)
    entries = [_entry(path, name, fields, data_start) for name, fields in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    position = data_start
    for entry in entries:
        if entry.begin != position:
            raise entry.wrong(f"data at byte {position}", f"byte {entry.begin}")
        position = entry.end
    if position != file_bytes:
        expected, found = f"a file of {position} bytes", f"{file_bytes} bytes"
        if entries:
            raise entries[-1].wrong(expected, found)
        raise ModelError(f"{path}: header: expected {expected}, found {found}")
    return {entry.name: entry for entry in entries}


def _header_text(path: Path) -> tuple[bytes, int]:
    """The JSON of the header, and the bytes of the file."""
    if not path.is_file():
        raise ModelError(f"{path}: file not found")
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            limit = min(MAX_HEADER_BYTES, file_bytes - 8)
            if not 2 <= length <= limit:
                raise ModelError(
                    f"{path}: header length: expected 2 to {max(limit, 2)} bytes in a file of "
                    f"{file_bytes} bytes, found {length}"
                )
            return file.read(length), file_bytes
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.80} twice")
    return found


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    try:
        fields = msgspec.convert(value, _Fields)
    except msgspec.ValidationError as error:
        entry = TensorEntry(path, name, "", (), 0, 0)
        raise entry.wrong("dtype, shape and data_offsets", f"{error}") from None
    begin, end = (data_start + offset for offset in fields.data_offsets)
    entry = TensorEntry(path, name, fields.dtype, fields.shape, begin, end, is_plain=True)
    item_bytes = _ITEM_BYTES.get(fields.dtype)
    needed = prod(fields.shape) * (item_bytes or 0)
    if end < begin or (item_bytes and end - begin != needed):
        raise entry.wrong(
            f"{needed} bytes for {fields.dtype} {list(fields.shape)}",
            f"data_offsets {list(fields.data_offsets)}",
        )
    return entry

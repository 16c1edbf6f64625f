"""A model in one GGUF file, or in several as `llama-gguf-split` makes them. No torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.weights.gguf_header import GgufHeader, read_gguf_header
from quire.pipelines.weights.tensor_entry import TensorEntry

_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufFile:
    """`metadata` with GGUF's keys, `entries` by GGUF's tensor names, of all files together."""

    path: Path
    metadata: ConfigFile
    entries: Mapping[str, TensorEntry]


def is_gguf(path: Path) -> bool:
    """Whether `path` names a GGUF file; it need not exist."""
    return path.suffix == ".gguf" and not path.is_dir()


def gguf_files(path: Path) -> tuple[Path, ...]:
    """The files of the model whose first or only one is `path`, by their names.

    Raises:
        ModelError: `path` is a later file of several.
    """
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    stem, number, count = match[1], int(match[2]), int(match[3])
    if number != 1:
        first = path.with_name(f"{stem}-00001-of-{match[3]}.gguf")
        raise ModelError(f"{path}: expected the first file of {count}, {first.name}")
    names = (f"{stem}-{index + 1:05}-of-{match[3]}.gguf" for index in range(max(count, 1)))
    return tuple(path.with_name(name) for name in names)


def gguf_header_bytes(path: Path) -> bytes:
    """What stands before the tensors' data: everything that configures the model.

    Raises:
        ModelError: as `read_gguf_header`.
    """
    with path.open("rb") as file:
        return file.read(read_gguf_header(path).data_start)


def read_gguf(path: Path) -> GgufFile:
    """Read and check the headers of all files.

    Raises:
        ModelError: a file is missing or damaged, or they do not belong together.
    """
    paths = gguf_files(path)
    headers = [read_gguf_header(part) for part in paths]
    metadata = ConfigFile(str(path), headers[0].metadata)
    entries: dict[str, TensorEntry] = {}
    for index, (part, header) in enumerate(zip(paths, headers, strict=True)):
        _check_split(part, header, index, len(paths))
        for name, entry in header.entries.items():
            if name in entries:
                raise entry.wrong(f"the tensor once, in {entries[name].path.name}", "it again")
            entries[name] = entry
    if metadata.has("split.tensors.count"):
        count = metadata.integer("split.tensors.count", minimum=0)
        if count != len(entries):
            raise metadata.wrong("split.tensors.count", f"{len(entries)}, as many as there are")
    return GgufFile(path, metadata, entries)


def _check_split(path: Path, header: GgufHeader, index: int, count: int) -> None:
    metadata = ConfigFile(str(path), header.metadata)
    if metadata.integer("split.count", 1, minimum=0) not in (count, count - (count == 1)):
        raise metadata.wrong("split.count", f"{count}, as the file's name says")
    if metadata.integer("split.no", 0, minimum=0) != index:
        raise metadata.wrong("split.no", f"{index}, as the file's name says")

"""Where a tensor of a checkpoint lies. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from quire.config.errors import ModelError

_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: bytes `begin` to `end` of `path`, counted from the file's start.

    `is_plain`: these are its numbers, row by row, so that some rows can be read alone.
    """

    path: Path
    name: str
    dtype: str
    """As safetensors headers say it: F32, BF16, ...; of GGUF blocks their type: Q4_K, ..."""
    shape: tuple[int, ...]
    begin: int
    end: int
    is_plain: bool = False

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    def blocks(self, most_bytes: int) -> Iterator["TensorEntry"]:
        """Its rows, as many at a time as `most_bytes` hold, but one at least."""
        row_bytes = self.num_bytes // max(self.shape[0], 1)
        count = max(1, most_bytes // max(row_bytes, 1))
        for row in range(0, self.shape[0], count):
            end = min(row + count, self.shape[0])
            begin, shape = self.begin + row * row_bytes, (end - row, *self.shape[1:])
            yield replace(self, shape=shape, begin=begin, end=self.begin + end * row_bytes)

    def wrong(self, expected: str, found: str) -> ModelError:
        """The error that names this tensor, in one line; for the caller to raise."""
        return ModelError(f"{self.path}: {_line(self.name)}: expected {expected}, found {found}")


def _line(name: str) -> str:
    """A name that a file may have made up, so that it can be printed."""
    name = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..."
    return name if name.isprintable() else ascii(name)

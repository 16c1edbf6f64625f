"""Where a tensor of a checkpoint lies. No torch."""

from dataclasses import dataclass
from pathlib import Path

from quire.config.errors import ModelError

_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: bytes `begin` to `end` of `path`, counted from the file's start."""

    path: Path
    name: str
    dtype: str
    """As safetensors headers say it: F32, BF16, ...; of GGUF blocks their type: Q4_K, ..."""
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    def wrong(self, expected: str, found: str) -> ModelError:
        """The error that names this tensor, in one line; for the caller to raise."""
        return ModelError(f"{self.path}: {_line(self.name)}: expected {expected}, found {found}")


def _line(name: str) -> str:
    """A name that a file may have made up, so that it can be printed."""
    name = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..."
    return name if name.isprintable() else ascii(name)

"""Typed access to the metadata of a GGUF file that describes its architecture. No torch."""

from dataclasses import dataclass

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.weights.gguf_file import GgufFile

Values = dict[str, object]
"""Keys of a config.json."""


@dataclass(frozen=True)
class GgufSettings:
    """Keys are given without the architecture's prefix. Methods raise ModelError as `ConfigFile`'s."""

    file: GgufFile
    architecture: str

    @property
    def metadata(self) -> ConfigFile:
        return self.file.metadata

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def has(self, name: str) -> bool:
        return self.metadata.has(self.key(name))

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        return self.metadata.integer(self.key(name), default, minimum=minimum)

    def number(self, name: str, default: float | None = None) -> float:
        return self.metadata.number(self.key(name), default)

    def string(self, name: str, default: str) -> str:
        return self.metadata.string(self.key(name), default)

    def wrong(self, name: str, expected: str) -> ModelError:
        return self.metadata.wrong(self.key(name), expected)

    def has_tensor(self, name: str) -> bool:
        return name in self.file.entries

    @property
    def heads(self) -> int:
        return self.integer("attention.head_count")

    @property
    def head_dim(self) -> int:
        default = max(self.integer("embedding_length") // self.heads, 1)
        return self.integer("attention.key_length", default)

    @property
    def window(self) -> int:
        """0: none."""
        return self.integer("attention.sliding_window", 0, minimum=0)

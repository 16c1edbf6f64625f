"""What a model folder is for: generating text or making embeddings. No torch."""

from pathlib import Path
from typing import Literal

from quire.config.errors import ConfigError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encoder_registry import SupportedEncoder, find_encoder
from quire.pipelines.architectures.encoder_spec import EncoderSpec

Task = Literal["generate", "embeddings"]


def encoder_of(folder: Path) -> SupportedEncoder | None:
    """The encoder that config.json names; None for decoders, and for GGUF files."""
    path = folder / "config.json"
    return find_encoder(ConfigFile.read(path).strings("architectures")) if path.is_file() else None


def encoder_spec(folder: Path, row: SupportedEncoder, prefix: str = "") -> EncoderSpec:
    """What config.json says of the encoder, whose weights' names begin with `prefix`.

    Raises:
        ModelError: a key is missing or wrong.
    """
    return row.read(ConfigFile.read(folder / "config.json"), prefix)


def task_of(folder: Path, wanted: Literal["auto", "generate", "embeddings"]) -> Task:
    """The setting `task` for a folder. Encoders, and decoders with the modules.json of
    sentence-transformers, make embeddings.

    Raises:
        ConfigError: an encoder is to generate.
    """
    row = encoder_of(folder)
    if wanted == "generate" and row is not None:
        raise ConfigError(f"task: generate: {row.names[0]} makes embeddings and generates no text")
    if wanted != "auto":
        return wanted
    is_embedder = row is not None or (folder / "modules.json").is_file()
    return "embeddings" if is_embedder else "generate"

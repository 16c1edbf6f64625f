"""Which architectures there are, and which a process serves by its settings. No torch."""

from dataclasses import dataclass

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.custom import registered_architectures
from quire.pipelines.architectures.encoder_registry import ENCODERS
from quire.pipelines.architectures.registry import (
    ANY_NAME,
    ARCHITECTURES,
    SupportedArchitecture,
    Task,
)
from quire.pipelines.huggingface.spec import read_huggingface_spec

HUGGING_FACE = SupportedArchitecture(name=ANY_NAME, example_repo_ids=(), read=read_huggingface_spec)


@dataclass(frozen=True)
class ListedArchitecture:
    """What a person may be told of an architecture."""

    name: str
    task: Task
    example_repo_ids: tuple[str, ...]


def listed_architectures() -> tuple[ListedArchitecture, ...]:
    """Quire's own, decoders first; an encoder's row has the first of its class names."""
    decoders = (
        ListedArchitecture(row.name, row.task, row.example_repo_ids) for row in ARCHITECTURES
    )
    encoders = (
        ListedArchitecture(row.names[0], "embeddings_generation", row.example_repo_ids)
        for row in ENCODERS
    )
    return (*decoders, *encoders)


def served_architectures(settings: ModelSettings) -> tuple[SupportedArchitecture, ...]:
    """Quire's own and `custom_architectures`; with `engine` huggingface whatever transformers has.

    Raises:
        ConfigError: a module of `custom_architectures` is missing or not what it should be,
            or would not be used.
    """
    if settings.engine == "huggingface":
        if settings.custom_architectures:
            raise ConfigError("custom_architectures: --engine huggingface has no use for them")
        return (HUGGING_FACE,)
    return registered_architectures(settings.custom_architectures)

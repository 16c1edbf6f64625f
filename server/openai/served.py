"""`ServedModel`: what the API process knows about the model it serves."""

import hashlib
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from quire.pipelines.architectures.load import config_bytes, load_model_spec
from quire.pipelines.architectures.registry import ARCHITECTURES, SupportedArchitecture
from quire.pipelines.architectures.sampling_defaults import load_sampling_defaults
from quire.pipelines.embedding_config import EmbeddingConfig, read_embedding_config
from quire.pipelines.model_task import encoder_of, encoder_spec, task_of
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.errors import InvalidRequest, ModelNotFound
from quire.server.openai.tools.dialect import Dialect


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The names clients may use, and what turns their text into tokens and back.

    `vocab_size` is the width of the logits: every token id is below it.
    `sampling_defaults` hold for the request fields that a client leaves out.
    `dialect` is how the model writes tool calls and reasoning.
    `embedding` is how a model that makes embeddings does; None where it generates text.
    `hidden_size` is the length of its vectors.
    `system_fingerprint` changes with the model's configuration and with Quire's version.
    """

    names: Sequence[str]
    tokenizer: TextTokenizer
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    system_fingerprint: str
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=Dialect)
    embedding: EmbeddingConfig | None = None
    hidden_size: int = 0
    is_encoder: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        names: Sequence[str],
        *,
        use_generation_config: bool = True,
        tool_call_parser: str = "auto",
        reasoning_parser: str = "auto",
        architectures: Sequence[SupportedArchitecture] = ARCHITECTURES,
        task: Literal["auto", "generate", "embeddings"] = "auto",
    ) -> "ServedModel":
        """Read the tokenizer and the configuration of a model folder.

        Without `use_generation_config` the defaults are OpenAI's, whatever the model recommends.

        Raises:
            ModelError: a file is missing or wrong.
            ConfigError: the model is not for the `task`.
        """
        encoder, makes_vectors = encoder_of(folder), task_of(folder, task) == "embeddings"
        spec = load_model_spec(folder, architectures) if encoder is None else None
        sizes = encoder_spec(folder, encoder) if encoder is not None else spec
        assert sizes is not None
        digest = hashlib.sha256(config_bytes(folder))
        digest.update(importlib.metadata.version("quire").encode())
        tokenizer = TextTokenizer.from_folder(folder)
        return cls(
            names=tuple(names),
            tokenizer=tokenizer,
            vocab_size=sizes.vocab_size,
            eos_token_ids=() if spec is None else spec.end_token_ids(tokenizer.eos_token_id),
            system_fingerprint=f"fp_{digest.hexdigest()[:10]}",
            sampling_defaults=load_sampling_defaults(folder) if use_generation_config else {},
            dialect=Dialect.of(tokenizer, tool_call_parser, reasoning_parser),
            embedding=(
                read_embedding_config(folder, "cls" if spec is None else "last")
                if makes_vectors
                else None
            ),
            hidden_size=sizes.hidden_size,
            is_encoder=spec is None,
        )

    def check_generates(self) -> None:
        """Raises InvalidRequest where the model is served for embeddings."""
        if self.embedding is not None:
            raise InvalidRequest(
                f"The model '{self.names[0]}' makes embeddings; use /v1/embeddings",
                param="model",
                code="wrong_task",
            )

    def embedding_config(self) -> EmbeddingConfig:
        """Raises InvalidRequest where the model is served for generating text."""
        if self.embedding is None:
            raise InvalidRequest(
                f"The model '{self.names[0]}' generates text; use /v1/chat/completions or "
                "/v1/completions, or start the server with --task embeddings",
                param="model",
                code="wrong_task",
            )
        return self.embedding

    def resolve(self, model: str | None) -> str:
        """The name to reply under; without one, the first.

        Raises:
            ModelNotFound: not one of the names.
        """
        if model is None:
            return self.names[0]
        if model not in self.names:
            raise ModelNotFound(model, self.names)
        return model

"""`ServedModel`: what the API process knows about the model it serves."""

import hashlib
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quire.pipelines.architectures.load import config_bytes, load_model_spec
from quire.pipelines.architectures.registry import ARCHITECTURES, SupportedArchitecture
from quire.pipelines.architectures.sampling_defaults import load_sampling_defaults
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.errors import ModelNotFound
from quire.server.openai.tools.dialect import Dialect


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The names clients may use, and what turns their text into tokens and back.

    `vocab_size` is the width of the logits: every token id is below it.
    `sampling_defaults` hold for the request fields that a client leaves out.
    `dialect` is how the model writes tool calls and reasoning.
    `system_fingerprint` changes with the model's configuration and with Quire's version.
    """

    names: Sequence[str]
    tokenizer: TextTokenizer
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    system_fingerprint: str
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=Dialect)
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
    ) -> "ServedModel":
        """Read the tokenizer and the configuration of a model folder.

        Without `use_generation_config` the defaults are OpenAI's, whatever the model recommends.

        Raises:
            ModelError: a file is missing or wrong.
        """
        spec = load_model_spec(folder, architectures)
        digest = hashlib.sha256(config_bytes(folder))
        digest.update(importlib.metadata.version("quire").encode())
        tokenizer = TextTokenizer.from_folder(folder)
        return cls(
            names=tuple(names),
            tokenizer=tokenizer,
            vocab_size=spec.vocab_size,
            eos_token_ids=spec.end_token_ids(tokenizer.eos_token_id),
            system_fingerprint=f"fp_{digest.hexdigest()[:10]}",
            sampling_defaults=load_sampling_defaults(folder) if use_generation_config else {},
            dialect=Dialect.of(tokenizer, tool_call_parser, reasoning_parser),
        )

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

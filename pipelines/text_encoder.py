"""`TextEncoder`: texts to embedding vectors, by an encoder or from a decoder's last hidden states.

Made for embedding models (BERT's kin; Qwen3-Embedding, which pools the last token); any other
decoder gives vectors too, of whatever use they are.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.build_encoder import build_encoder
from quire.pipelines.architectures.common import read_dtype
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encoder_registry import SupportedEncoder
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.served import served_architectures
from quire.pipelines.architectures.spec import serving_dtype
from quire.pipelines.core.context import Pooling, TextContext
from quire.pipelines.core.plan import PlanRow, StepPlan
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.embedding_config import finished_vector, read_embedding_config
from quire.pipelines.encoder_plan import plan_encoder
from quire.pipelines.hf import resolve_model
from quire.pipelines.huggingface.embeddings import HFEmbeddingsPipeline
from quire.pipelines.kv_cache.manager import PagedKVCacheManager
from quire.pipelines.model_task import encoder_of, encoder_spec
from quire.pipelines.tokenizer import TextTokenizer
from quire.pipelines.weights.checkpoint import load_weights, match_weights
from quire.pipelines.weights.loader import WeightLoader
from quire.pipelines.worker.host import available_cores
from quire.pipelines.worker.load import (
    Progress,
    find_device,
    free_memory,
    load_runner,
    set_threads,
)
from quire.pipelines.worker.pooling import pool_text
from quire.pipelines.worker.progress import progress_bar


class StateSource(Protocol):
    """A loaded model: token ids to last hidden states."""

    max_length: int

    def states(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """fp32 [tokens, C] of each text."""
        ...


class TextEncoder:
    """A loaded model that embeds texts, in batches of the step's token budget.

    Raises:
        ModelError, ConfigError: the model cannot be loaded with these settings.
    """

    def __init__(self, settings: ModelSettings) -> None:
        folder = resolve_model(settings.model, settings.revision, settings.load_format)
        row = encoder_of(folder)
        is_ours = settings.engine == "quire"
        self._encode: Callable[[str], list[int]] = TextTokenizer.from_folder(folder).encode
        with progress_bar() as progress:
            if not is_ours:
                self._model: StateSource = hugging_face_states(settings, folder)
            elif row is None:
                self._model = DecoderStates(settings, folder, progress)
            else:
                self._model = EncoderStates(settings, folder, row, progress)
        self.config = read_embedding_config(folder, "last" if row is None else "cls")
        limits = (self._model.max_length, self.config.max_tokens or self._model.max_length)
        self.max_length = min(limits)

    def encode(
        self,
        texts: Sequence[str],
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
    ) -> NDArray[np.float32]:
        """Vectors [N, C].

        Args:
            texts: what to embed.
            pooling: of the last hidden states; None: the model's own.
            normalize: whether vectors get length 1; None: as the model says.
            prompt_name: of the model's prompts, put before each text; None: its default one.

        Raises:
            ValueError: a text is empty or longer than the model's context, or no such prompt.
        """
        prompt = self._prompt(prompt_name)
        ids = [self._tokens(prompt + text) for text in texts]
        normalized = self.config.normalize if normalize is None else normalize
        vectors = []
        for states in self._model.states(ids):
            vector = pool_text(states.cpu().numpy(), pooling or self.config.pooling)
            vectors.append(finished_vector(vector, normalize=normalized))
        return np.stack(vectors)

    def _prompt(self, name: str | None) -> str:
        if name is None:
            return self.config.default_prompt
        if name not in self.config.prompts:
            known = ", ".join(sorted(self.config.prompts)) or "it has none"
            raise ValueError(f"prompt_name: {name} is not a prompt of this model: {known}")
        return self.config.prompts[name]

    def _tokens(self, text: str) -> list[int]:
        ids = self._encode(text.lower() if self.config.lowers_case else text)
        if not ids:
            raise ValueError("a text is empty")
        if len(ids) > self.max_length:
            raise ValueError(f"a text has {len(ids)} tokens, the model takes {self.max_length}")
        return ids


def hugging_face_states(settings: ModelSettings, folder: Path) -> HFEmbeddingsPipeline:
    """Whatever transformers' AutoModel makes of the folder."""
    device = find_device(settings.device)
    config = ConfigFile.read(folder / "config.json")
    dtype = serving_dtype(read_dtype(config), settings.dtype, device.type)
    set_threads(settings.threads or available_cores())
    return HFEmbeddingsPipeline(folder, getattr(torch, dtype), device)


class EncoderStates:
    """A bidirectional model; texts of a batch run together."""

    def __init__(
        self, settings: ModelSettings, folder: Path, row: SupportedEncoder, progress: Progress
    ) -> None:
        if settings.quantization != "none":
            raise ConfigError(
                f"quantization {settings.quantization}: expected none, as {row.names[0]} is an encoder"
            )
        weights = load_weights(folder, None, settings.load_format, progress)
        marker = "embeddings.word_embeddings.weight"
        spec = encoder_spec(folder, row, "" if marker in weights.entries else row.prefix)
        device = find_device(settings.device)
        dtype = serving_dtype(spec.checkpoint_dtype, settings.dtype, device.type)
        self.plan = plan_encoder(spec, settings, dtype, free_memory(device))
        set_threads(settings.threads or available_cores())
        loader = WeightLoader(
            weights,
            match_weights(weights, spec),
            getattr(torch, dtype),
            device,
            lambda fraction: progress("weights", fraction),
        )
        self._encoder = build_encoder(spec, loader, exact=settings.exact)
        self._device = device
        self._budget = settings.max_batch_input_tokens
        self.device, self.dtype = str(device), dtype
        self.max_length = self.plan.max_length
        (test,) = self.states([[0, 1]])
        if not test.isfinite().all():
            raise ModelError(f"{folder}: self-test in {dtype}: expected finite states")

    @torch.inference_mode()
    def states(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """As `StateSource.states`."""
        for batch in batches(texts, self._budget):
            tokens = torch.tensor([id for text in batch for id in text], device=self._device)
            lengths = [len(text) for text in batch]
            yield from torch.split(self._encoder(tokens, lengths).float(), lengths)


class DecoderStates:
    """A causal model, one text at a time, in chunks of the step's token budget."""

    def __init__(self, settings: ModelSettings, folder: Path, progress: Progress) -> None:
        architectures = served_architectures(settings)
        spec = load_model_spec(folder, architectures)
        self._model = load_runner(settings, folder, spec, progress, architectures=architectures)
        self.max_length = self._model.max_length
        self._chunk = settings.max_batch_input_tokens
        self._pages = PagedKVCacheManager(
            self._model.plan.groups,
            page_size=settings.page_size,
            max_chunk=self._chunk,
            enable_prefix_caching=False,
        )

    def states(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """As `StateSource.states`."""
        return map(self._states, texts)

    def _states(self, ids: Sequence[int]) -> torch.Tensor:
        # One more than the text: a context always has room for a token it could generate.
        context = TextContext(
            0, np.asarray(ids, np.int32), SamplingParams(), max_length=self.max_length + 1
        )
        held = self._pages.new_context(b"")
        found = []
        for start in range(0, len(ids), self._chunk):
            count = min(self._chunk, len(ids) - start)
            self._pages.extend(held, start, len(ids))
            row = PlanRow(context, start, count, held.tables, False)
            found.append(self._model.runner.hidden_states(StepPlan([row])))
            self._pages.advance(held, context.tokens.all[: start + count])
        self._pages.release(held)
        return torch.cat(found)


def batches(texts: Sequence[Sequence[int]], budget: int) -> Iterator[Sequence[Sequence[int]]]:
    """Neighbours whose tokens fit `budget` together; a longer text is alone."""
    start = tokens = 0
    for index, text in enumerate(texts):
        if index > start and tokens + len(text) > budget:
            yield texts[start:index]
            start, tokens = index, 0
        tokens += len(text)
    if texts:
        yield texts[start:]

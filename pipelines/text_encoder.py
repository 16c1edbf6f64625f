"""`TextEncoder`: texts to embedding vectors, from the decoder's last hidden states.

Made for embedding models of the supported families (Qwen3-Embedding pools the last token); any
other decoder gives vectors too, of whatever use they are.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import PlanRow, StepPlan
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.hf import resolve_model
from quire.pipelines.tokenizer import TextTokenizer
from quire.pipelines.worker.load import load_runner
from quire.pipelines.worker.progress import progress_bar

Pooling = Literal["last", "mean"]


class TextEncoder:
    """A loaded model that embeds text, one prompt at a time, in chunks of the step's token budget.

    Raises:
        ModelError, ConfigError: the model cannot be loaded with these settings.
    """

    def __init__(self, settings: ModelSettings) -> None:
        folder = resolve_model(settings.model, settings.revision)
        self._tokenizer = TextTokenizer.from_folder(folder)
        with progress_bar() as progress:
            self._model = load_runner(settings, folder, load_model_spec(folder), progress)
        self._chunk = settings.max_batch_input_tokens
        self._page_size = settings.page_size

    def encode(
        self, texts: Sequence[str], *, pooling: Pooling = "last", normalize: bool = True
    ) -> NDArray[np.float32]:
        """Vectors [N, C]; `normalize` makes them of length 1.

        Raises:
            ValueError: a text is empty, or longer than the model's context.
        """
        return np.stack([self._encode(text, pooling, normalize) for text in texts])

    def _encode(self, text: str, pooling: Pooling, normalize: bool) -> NDArray[np.float32]:
        ids = self._tokenizer.encode(text)
        # One more than the text: a context always has room for a token it could generate.
        context = TextContext(
            0, np.asarray(ids, np.int32), SamplingParams(), max_length=self._model.max_length + 1
        )
        pages = list(range(-(-len(ids) // self._page_size)))
        total: torch.Tensor | None = None
        for start in range(0, len(ids), self._chunk):
            count = min(self._chunk, len(ids) - start)
            row = PlanRow(context, start, count, pages, False)
            states = self._model.runner.hidden_states(StepPlan([row]))
            if pooling == "last":
                total = states[-1]
            else:
                total = states.sum(0) if total is None else total + states.sum(0)
        assert total is not None
        vector = total if pooling == "last" else total / len(ids)
        if normalize:
            vector = torch.nn.functional.normalize(vector, dim=0)
        return vector.cpu().numpy()

"""`HFEmbeddingsPipeline`: hidden states of any model that transformers knows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from quire.pipelines.huggingface.pretrained import load_pretrained


class HFEmbeddingsPipeline:
    """Token ids to last hidden states, one text at a time; a `StateSource`.

    Raises:
        ModelError: transformers does not know the model or cannot load it, or a weight is missing.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import AutoModel

        # A pooler comes after the states.
        model = load_pretrained(AutoModel, folder, dtype, unused="pooler")
        self._model = model.to(device).eval()
        self._device = device
        self.max_length: int = self._model.config.get_text_config().max_position_embeddings

    def states(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """fp32 [tokens, C] of each text."""
        for text in texts:
            with torch.inference_mode():
                ids = torch.tensor([list(text)], device=self._device)
                states: torch.Tensor = self._model(input_ids=ids).last_hidden_state[0]
            yield states.float()

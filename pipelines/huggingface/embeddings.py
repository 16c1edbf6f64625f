"""`HFEmbeddingsPipeline`: hidden states of any model that transformers knows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from quire.config.errors import ModelError


class HFEmbeddingsPipeline:
    """Token ids to last hidden states, one text at a time; a `StateSource`.

    Raises:
        ModelError: transformers does not know the model or cannot load it.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{folder}: transformers cannot load it: {reason}") from None
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

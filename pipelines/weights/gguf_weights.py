"""`GGUFWeights`: the tensors of a GGUF file by the names and in the layout of Hugging Face."""

from collections.abc import Mapping
from pathlib import Path

import torch

from quire.pipelines.architectures.quantized.gguf import BLOCK_TYPES
from quire.pipelines.weights.file_reader import read_bytes
from quire.pipelines.weights.gguf_file import read_gguf
from quire.pipelines.weights.gguf_names import gguf_names, hugging_face_entries
from quire.pipelines.weights.safetensors_weights import TORCH_DTYPES
from quire.pipelines.weights.tensor_entry import TensorEntry


class GGUFWeights:
    """The tensors of the model at `path`; what is stored in blocks stays in blocks.

    Raises:
        ModelError: one line that names file, key, expected and found.
    """

    def __init__(self, path: Path) -> None:
        file = read_gguf(path)
        self.source = str(path)
        self.entries: Mapping[str, TensorEntry] = hugging_face_entries(file)
        self._names = gguf_names(file)
        architecture = file.metadata.string("general.architecture")
        heads = file.metadata.integer(f"{architecture}.attention.head_count")
        kv_heads = file.metadata.integer(f"{architecture}.attention.head_count_kv", heads)
        self._heads = {"attn_q": heads, "attn_k": kv_heads}

    def read(self, name: str) -> torch.Tensor:
        """As `Weights.read`."""
        entry = self.entries[name]
        data = torch.from_numpy(read_bytes(entry, torch.get_num_threads()))
        if entry.dtype in BLOCK_TYPES:
            tensor = data.view(*entry.shape[:-1], -1)
        elif entry.dtype in TORCH_DTYPES:
            tensor = data.view(TORCH_DTYPES[entry.dtype]).view(entry.shape)
        else:
            raise entry.wrong(f"dtype {', '.join(TORCH_DTYPES)}", entry.dtype)
        if self._names.is_rotated(entry.name):
            module = entry.name.split(".")[2]
            tensor = _with_halves_apart(tensor, self._heads[module])
        if self._names.is_offset(entry.name):
            tensor = tensor.float() - self._names.norm_offset
        return tensor


def _with_halves_apart(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of each head, stored as 0, d/2, 1, d/2 + 1, ..., in the order 0, 1, ..."""
    pairs = tensor.reshape(num_heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)

"""`Weights`: a checkpoint of any format, by the names that the model's spec has."""

from collections.abc import Mapping
from typing import Protocol

import torch

from quire.pipelines.weights.tensor_entry import TensorEntry


class Weights(Protocol):
    """The tensors of a checkpoint whose files were checked; reading one runs no code."""

    @property
    def source(self) -> str:
        """What an error about the whole checkpoint names: a file or folder."""
        ...

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """By name; of other formats than Hugging Face's, the names are translated to those."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the host, in its own dtype; blocks of GGUF as uint8 [N, bytes per row].

        Raises:
            ModelError: the file is not what it was when it was checked.
        """
        ...

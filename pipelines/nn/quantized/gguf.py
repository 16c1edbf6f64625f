"""`GgufWeight`: a linear layer's matrix as the blocks of a GGUF file."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quantized.gguf import GgufEncoding
from quire.pipelines.nn.quantized.at_load import BlocksWeight
from quire.pipelines.weights.gguf_blocks import dequantize_rows


class GgufWeight(BlocksWeight):
    """Blocks of one ggml type; q, k and v of a layer may each have another."""

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        assert isinstance(encoding, GgufEncoding)
        return cls(tensors["weight"], encoding.ggml_type, dtype)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self | None:
        same = len({part._kind for part in parts}) == 1
        return super().stack(parts) if same else None

    def dense(self) -> torch.Tensor:
        return dequantize_rows(self._weight, self._kind, self._dtype)

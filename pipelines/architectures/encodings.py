"""How the weights of a linear layer are stored in a checkpoint. No torch.

An encoding says which tensors a layer has there; `pipelines/nn/linear_weight.py` computes with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number of the dtypes that a model may be served in."""

FLOAT_DTYPES = ("F32", "BF16", "F16")
"""Formats of numbers that any weight may have, by their safetensors name."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a checkpoint must have; `is_optional`: may have."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOAT_DTYPES
    is_optional: bool = False

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Encoding:
    """Plain numbers, one `weight` [N, K]; the base of the packed encodings.

    `is_transposed`: stored as [K, N] (the Conv1D of GPT-2).
    """

    is_transposed: bool = False

    @property
    def name(self) -> str:
        """As `quire list` and the metrics show it."""
        return "dense"

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        """By what follows the layer's name and a dot; the bias is not among them.

        Raises:
            ValueError: a layer of this size cannot be stored so.
        """
        shape = (in_dim, out_dim) if self.is_transposed else (out_dim, in_dim)
        return {"weight": TensorSpec(shape)}

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        """What the weights take where they are computed with, the bias not counted."""
        return out_dim * in_dim * ITEM_BYTES[dtype]


DENSE = Encoding()

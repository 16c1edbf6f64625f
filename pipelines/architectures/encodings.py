"""How the weights of a linear layer are stored in a checkpoint. No torch.

An encoding says which tensors a layer has there; `pipelines/nn/linear_weight.py` computes with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from quire.kernels.native import library
from quire.kernels.native.number_groups import NumberGroups

ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number of the dtypes that a model may be served in."""

FLOAT_DTYPES = ("F32", "BF16", "F16")
"""Formats of numbers that any weight may have, by their safetensors name."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a checkpoint must have; `is_optional`: may have.

    `other_shapes` say the same with as many numbers: a lone scale is stored as [] or [1].
    """

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOAT_DTYPES
    is_optional: bool = False
    other_shapes: tuple[tuple[int, ...], ...] = ()

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

    def over(self, own: "Encoding") -> "Encoding":
        """The encoding of a layer to which the architecture itself gives `own`."""
        return own


@dataclass(frozen=True, kw_only=True)
class PackedEncoding(Encoding):
    """Numbers of few bits. CUDA computes with them as they are stored, a CPU with those that its
    compiled layers take (`number_groups`); else they are dequantized once, at load."""

    @property
    def number_groups(self) -> NumberGroups | None:
        """What the compiled layers of a CPU make of them; None: it has none for them."""
        return None

    def is_packed_on(self, device_type: str) -> bool:
        """Whether such a device computes with fewer bits; else with the dequantized numbers."""
        is_compiled = self.number_groups is not None and library() is not None
        return device_type == "cuda" or is_compiled

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        if device_type != "cuda":
            if self.number_groups is not None and self.is_packed_on(device_type):
                return self.number_groups.device_bytes(out_dim, in_dim)
            return super().device_bytes(out_dim, in_dim, dtype, device_type)
        return sum(
            tensor.num_elements * _STORED_BYTES[tensor.dtypes[0]]
            for tensor in self.tensors(out_dim, in_dim).values()
            if not tensor.is_optional
        )


_STORED_BYTES: Mapping[str, int] = {
    "F32": 4,
    "I64": 8,
    "I32": 4,
    "BF16": 2,
    "F16": 2,
    "F8_E4M3": 1,
    "U8": 1,
    "I8": 1,
}


DENSE = Encoding()

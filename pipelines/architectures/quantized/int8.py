"""int8 with a scale per row, as stored by compressed-tensors. No torch."""

from dataclasses import dataclass

from quire.kernels.native import library
from quire.pipelines.architectures.encodings import (
    FLOAT_DTYPES,
    ITEM_BYTES,
    PackedEncoding,
    TensorSpec,
)


def is_int8_on(device_type: str) -> bool:
    """Whether such a device computes with the bytes: a CPU where the C++ kernels are installed."""
    return device_type == "cuda" or library() is not None


def int8_bytes(out_dim: int, in_dim: int, item_bytes: int = 1) -> int:
    """Of numbers of `item_bytes` with a scale per row."""
    return out_dim * (in_dim * item_bytes + ITEM_BYTES["float32"])


def w8a8_bytes(out_dim: int, in_dim: int, device_type: str) -> int:
    """A CPU without the C++ kernels keeps the whole numbers in float32 (`prepare_w8a8`)."""
    item_bytes = 1 if is_int8_on(device_type) else ITEM_BYTES["float32"]
    return int8_bytes(out_dim, in_dim, item_bytes)


@dataclass(frozen=True, kw_only=True)
class Int8Encoding(PackedEncoding):
    """`weight` and `weight_scale`, one per row or, `is_tensor`, one; activations are not quantized."""

    is_tensor: bool = False

    @property
    def name(self) -> str:
        return "int8"

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        scale = TensorSpec((out_dim, 1), FLOAT_DTYPES, other_shapes=((out_dim,),))
        if self.is_tensor:
            scale = TensorSpec((), FLOAT_DTYPES, other_shapes=((1,), (1, 1)))
        return {"weight": TensorSpec((out_dim, in_dim), ("I8",)), "weight_scale": scale}

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        if not is_int8_on(device_type):
            return out_dim * in_dim * ITEM_BYTES[dtype]
        return int8_bytes(out_dim, in_dim)


@dataclass(frozen=True, kw_only=True)
class W8A8Encoding(Int8Encoding):
    """The same with activations in int8, with a scale per token."""

    @property
    def name(self) -> str:
        return "w8a8"

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        return w8a8_bytes(out_dim, in_dim, device_type)

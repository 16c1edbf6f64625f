"""Quantization while a dense checkpoint is loaded: the setting `quantization`. No torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quire.config.errors import ConfigError
from quire.kernels.native import library
from quire.kernels.native.number_groups import GGUF_GROUPS, NumberGroups
from quire.pipelines.architectures.encodings import (
    ITEM_BYTES,
    Encoding,
    PackedEncoding,
    TensorSpec,
)
from quire.pipelines.architectures.parts import LinearSpec
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig
from quire.pipelines.architectures.spec import ModelSpec

BLOCK = 32
"""Numbers along K that share a scale in GGUF's Q4_0 and Q8_0."""


@dataclass(frozen=True, kw_only=True)
class AtLoadEncoding(PackedEncoding):
    """Plain numbers in the checkpoint, fewer bits on the device."""

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        return Encoding(self.is_transposed).tensors(out_dim, in_dim)

    def over(self, own: Encoding) -> Encoding:
        """A layer that is stored transposed is quantized too; others keep what is their own."""
        if type(own) is Encoding and own.is_transposed:
            return dataclasses.replace(self, is_transposed=True)
        return own


@dataclass(frozen=True, kw_only=True)
class Int8AtLoad(AtLoadEncoding):
    """int8 with a scale per row; activations are not quantized."""

    @property
    def name(self) -> str:
        return "int8"

    def is_packed_on(self, device_type: str) -> bool:
        """A CPU computes with the stored bytes where the C++ kernels are installed."""
        return device_type == "cuda" or library() is not None

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        if not self.is_packed_on(device_type):
            return out_dim * in_dim * ITEM_BYTES[dtype]
        return out_dim * (in_dim + ITEM_BYTES["float32"])


@dataclass(frozen=True, kw_only=True)
class Float8AtLoad(Int8AtLoad):
    """fp8 with a scale per row; on a GPU activations are fp8 too, with a scale per token."""

    def is_packed_on(self, device_type: str) -> bool:
        return device_type == "cuda"

    @property
    def name(self) -> str:
        return "fp8"


@dataclass(frozen=True, kw_only=True)
class BlocksAtLoad(AtLoadEncoding):
    """GGUF's Q4_0 or Q8_0; activations are not quantized."""

    kind: Literal["Q4_0", "Q8_0"]

    @property
    def name(self) -> str:
        return self.kind.lower()

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        if in_dim % BLOCK:
            raise ValueError(f"{self.name} blocks of {BLOCK} in {in_dim} columns")
        return super().tensors(out_dim, in_dim)

    @property
    def number_groups(self) -> NumberGroups:
        return GGUF_GROUPS[self.kind]

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        if device_type != "cuda":
            return super().device_bytes(out_dim, in_dim, dtype, device_type)
        # A float16 scale and the numbers.
        return out_dim * in_dim // BLOCK * (2 + BLOCK * (4 if self.kind == "Q4_0" else 8) // 8)


NONE = "none"
"""The value of the setting that leaves a model as it is."""

ENCODINGS: Mapping[str, AtLoadEncoding] = {
    "int8": Int8AtLoad(),
    "fp8": Float8AtLoad(),
    "q4_0": BlocksAtLoad(kind="Q4_0"),
    "q8_0": BlocksAtLoad(kind="Q8_0"),
}
"""By the value of the setting."""


def quantize_at_load(spec: ModelSpec, quantization: str, device_type: str) -> ModelSpec:
    """`spec` with its linear layers quantized while they are loaded.

    Those of the embedding, the norms and the head stay as they are, as do routers, experts and
    what an architecture reads as plain numbers.

    Raises:
        ConfigError: the checkpoint is quantized already, or has a layer of a size that cannot be.
    """
    if quantization == NONE:
        return spec
    if spec.quant != UNQUANTIZED:
        raise ConfigError(
            f"quantization {quantization}: expected a checkpoint of plain numbers, found one that "
            "is quantized"
        )
    encoding = ENCODINGS[quantization]
    heads = spec.lm_head.names if spec.lm_head else ()
    linears = [owner for owner in spec.owners if isinstance(owner, LinearSpec)]
    others = tuple(
        name for owner in linears if type(owner) is not LinearSpec for name in owner.names
    )
    quant = QuantConfig(encoding, (*heads, *others, "experts"))
    chosen = [
        (name, out_dim * owner.in_dim)
        for owner in linears
        for name, out_dim in owner.modules()
        if isinstance(owner.encoding_of(name, quant), AtLoadEncoding)
    ]
    note = (
        f"quantized at load to {quantization}: {len(chosen)} linear layers of "
        f"{sum(size for _, size in chosen)} weights; embedding, norms and head are not"
    )
    if not encoding.is_packed_on(device_type):
        note += "; a CPU computes with the dequantized numbers and needs as much memory as before"
    spec = dataclasses.replace(spec, quant=dataclasses.replace(quant, notes=(note,)))
    try:
        spec.tensors()
    except ValueError as error:
        raise ConfigError(f"quantization {quantization}: {error}") from None
    return spec

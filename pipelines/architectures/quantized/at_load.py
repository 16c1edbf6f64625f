"""Quantization while a dense checkpoint is loaded: the setting `quantization`. No torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quire.config.errors import ConfigError
from quire.kernels.native.number_groups import GGUF_GROUPS, NumberGroups
from quire.pipelines.architectures.encodings import (
    ITEM_BYTES,
    Encoding,
    PackedEncoding,
    TensorSpec,
)
from quire.pipelines.architectures.parts import LinearSpec
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig
from quire.pipelines.architectures.quantized.int8 import int8_bytes, is_int8_on, w8a8_bytes
from quire.pipelines.architectures.spec import ModelSpec

BLOCK = 32
"""Numbers along K that share a scale in GGUF's Q4_0 and Q8_0."""


@dataclass(frozen=True, kw_only=True)
class AtLoadEncoding(PackedEncoding):
    """Plain numbers in the checkpoint, fewer bits on the device."""

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        return Encoding(self.is_transposed).tensors(out_dim, in_dim)

    def of_head(self) -> "AtLoadEncoding | None":
        """What the head is quantized to; None: it is not."""
        return None

    def note_of_dense(self) -> str:
        """What the log of the start says of a device that does not compute with fewer bits."""
        return "a CPU computes with the dequantized numbers and needs as much memory as before"

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
        return is_int8_on(device_type)

    def of_head(self) -> AtLoadEncoding | None:
        return Int8AtLoad()

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        if not self.is_packed_on(device_type):
            return out_dim * in_dim * ITEM_BYTES[dtype]
        return int8_bytes(out_dim, in_dim)


@dataclass(frozen=True, kw_only=True)
class W8A8AtLoad(Int8AtLoad):
    """int8 with a scale per row, and activations in int8 with a scale per token; those of the head,
    which choose the token, stay as they are."""

    @property
    def name(self) -> str:
        return "w8a8"

    def note_of_dense(self) -> str:
        return "a CPU without the C++ kernels keeps the whole numbers in float32, in more memory"

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        return w8a8_bytes(out_dim, in_dim, device_type)


@dataclass(frozen=True, kw_only=True)
class Float8AtLoad(Int8AtLoad):
    """fp8 with a scale per row; on a GPU activations are fp8 too, with a scale per token."""

    def is_packed_on(self, device_type: str) -> bool:
        return device_type == "cuda"

    def of_head(self) -> None:
        return None

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
    "w8a8": W8A8AtLoad(),
    "fp8": Float8AtLoad(),
    "q4_0": BlocksAtLoad(kind="Q4_0"),
    "q8_0": BlocksAtLoad(kind="Q8_0"),
}
"""By the value of the setting."""


def quantize_at_load(spec: ModelSpec, quantization: str, device_type: str) -> ModelSpec:
    """`spec` with its linear layers quantized while they are loaded.

    The embedding and the norms stay as they are, as do routers, experts, what an architecture reads
    as plain numbers and, unless the encoding has something for it, the head. Of a head that is the
    embedding the quantized numbers are a copy: rows are looked up in the plain ones.

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
    if (of_head := encoding.of_head()) is not None:
        spec = _with_head(spec, of_head)
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
        f"{sum(size for _, size in chosen)} weights; "
        + (
            "embedding, norms and head are not"
            if of_head is None
            else "embedding and norms are not"
        )
    )
    if spec.tied_encoding is not None:
        note += f"; the head is a copy of the embedding in {spec.tied_encoding.name}"
    if not encoding.is_packed_on(device_type):
        note += f"; {encoding.note_of_dense()}"
    spec = dataclasses.replace(spec, quant=dataclasses.replace(quant, notes=(note,)))
    try:
        spec.tensors()
    except ValueError as error:
        raise ConfigError(f"quantization {quantization}: {error}") from None
    return spec


def _with_head(spec: ModelSpec, encoding: AtLoadEncoding) -> ModelSpec:
    if spec.lm_head is None:
        return dataclasses.replace(spec, tied_encoding=encoding)
    own = spec.lm_head.encoding
    head = encoding if own is None else encoding.over(own)
    return dataclasses.replace(spec, lm_head=dataclasses.replace(spec.lm_head, encoding=head))

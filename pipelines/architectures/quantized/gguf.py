"""Linear layers stored as GGUF blocks, each of a type of its own. No torch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from quire.kernels.native.number_groups import GGUF_GROUPS, NumberGroups
from quire.pipelines.architectures.encodings import (
    DENSE,
    FLOAT_DTYPES,
    Encoding,
    PackedEncoding,
    TensorSpec,
)
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig
from quire.pipelines.weights.gguf_header import GGML_TYPES, GgmlType
from quire.pipelines.weights.tensor_entry import TensorEntry

BLOCK_TYPES: Mapping[str, GgmlType] = {
    stored.name: stored
    for stored in GGML_TYPES.values()
    if stored.name
    in (
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
    )
}
"""Those that `kernels.gguf` computes with, by name."""


@dataclass(frozen=True, kw_only=True)
class GgufEncoding(PackedEncoding):
    """One `weight` of blocks; computed with as they are on a GPU, as bytes or half bytes in groups
    on a CPU with compiled kernels, else dequantized."""

    ggml_type: str

    @property
    def name(self) -> str:
        return f"gguf-{self.ggml_type.lower()}"

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        return {"weight": TensorSpec((out_dim, in_dim), (self.ggml_type,))}

    @property
    def number_groups(self) -> NumberGroups:
        return GGUF_GROUPS[self.ggml_type]

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        if device_type != "cuda":
            return super().device_bytes(out_dim, in_dim, dtype, device_type)
        stored = BLOCK_TYPES[self.ggml_type]
        return out_dim * -(-in_dim // stored.block_elements) * stored.block_bytes


@dataclass(frozen=True)
class GgufQuantConfig(QuantConfig):
    """What each tensor of a GGUF file is stored as, `types` by the layer's checkpoint name;
    `encoding` is that of most of them."""

    types: Mapping[str, str] = field(default_factory=dict)

    @property
    def embedding_dtypes(self) -> tuple[str, ...]:
        return (*FLOAT_DTYPES, *BLOCK_TYPES)

    def encoding_of(self, name: str) -> Encoding:
        return GgufEncoding(ggml_type=self.types[name]) if name in self.types else DENSE


def read_gguf_quant(entries: Mapping[str, TensorEntry]) -> QuantConfig:
    """Of a file's tensors, `entries` by their checkpoint names.

    Raises:
        ModelError: a type that is not supported.
    """
    supported = (*FLOAT_DTYPES, *BLOCK_TYPES)
    for entry in entries.values():
        if entry.dtype not in supported:
            raise entry.wrong(f"one of the ggml types {', '.join(supported)}", entry.dtype)
    types = {
        name.removesuffix(".weight"): entry.dtype
        for name, entry in entries.items()
        if entry.dtype in BLOCK_TYPES
    }
    if not types:
        return UNQUANTIZED
    ((most, _),) = Counter(types.values()).most_common(1)
    return GgufQuantConfig(encoding=GgufEncoding(ggml_type=most), types=types)

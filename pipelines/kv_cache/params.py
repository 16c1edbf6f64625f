"""The shape of the paged KV cache. No torch."""

from dataclasses import dataclass

from quire.pipelines.architectures.encodings import ITEM_BYTES
from quire.pipelines.architectures.parts import KVLayerSpec
from quire.pipelines.architectures.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class KVCacheParams:
    """What one page holds: `page_size` tokens' keys and values of every layer.

    `dtype` is a name (float32, bfloat16, float16); `layers` has what each layer caches.
    """

    dtype: str
    layers: tuple[KVLayerSpec, ...]
    page_size: int
    enable_prefix_caching: bool = True

    @classmethod
    def of(
        cls, spec: ModelSpec, *, dtype: str, page_size: int, enable_prefix_caching: bool
    ) -> "KVCacheParams":
        return cls(
            dtype=dtype,
            layers=spec.kv_layers,
            page_size=page_size,
            enable_prefix_caching=enable_prefix_caching,
        )

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return ITEM_BYTES[self.dtype] * sum(layer.numbers_per_token for layer in self.layers)

    @property
    def bytes_per_page(self) -> int:
        return self.page_size * self.bytes_per_token

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

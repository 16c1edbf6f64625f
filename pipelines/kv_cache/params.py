"""The shape of the paged KV cache. No torch."""

from dataclasses import dataclass

from quire.pipelines.architectures.spec import ITEM_BYTES, ModelSpec


@dataclass(frozen=True, kw_only=True)
class KVCacheParams:
    """What one page holds: `page_size` tokens' keys and values of every layer.

    `dtype` is a name (float32, bfloat16, float16); `n_kv_heads` counts the heads of the whole
    model, which `n_devices` share evenly.
    """

    dtype: str
    n_kv_heads: int
    head_dim: int
    num_layers: int
    page_size: int
    enable_prefix_caching: bool = True
    n_devices: int = 1

    @classmethod
    def of(
        cls, spec: ModelSpec, *, dtype: str, page_size: int, enable_prefix_caching: bool
    ) -> "KVCacheParams":
        return cls(
            dtype=dtype,
            n_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            num_layers=spec.num_layers,
            page_size=page_size,
            enable_prefix_caching=enable_prefix_caching,
        )

    @property
    def n_kv_heads_per_device(self) -> int:
        return self.n_kv_heads // self.n_devices

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers, on one device."""
        per_layer = 2 * self.n_kv_heads_per_device * self.head_dim
        return per_layer * self.num_layers * ITEM_BYTES[self.dtype]

    @property
    def bytes_per_page(self) -> int:
        return self.page_size * self.bytes_per_token

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

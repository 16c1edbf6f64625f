"""The shape of the paged KV cache. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from quire.pipelines.architectures.encodings import ITEM_BYTES
from quire.pipelines.architectures.parts import KVLayerSpec
from quire.pipelines.architectures.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that keep the KV of the same tokens, the last `window` or all, and share page ids."""

    window: int | None
    layers: tuple[int, ...]


def group_layers(layers: Sequence[KVLayerSpec]) -> tuple[LayerGroup, ...]:
    """The page groups of a model: layers that keep all tokens first, then by window."""
    windows = sorted({layer.window or 0 for layer in layers})
    return tuple(
        LayerGroup(
            window or None,
            tuple(i for i, layer in enumerate(layers) if (layer.window or 0) == window),
        )
        for window in windows
    )


@dataclass(frozen=True, kw_only=True)
class KVCacheParams:
    """What one page holds: `page_size` tokens' keys and values of every layer of its group.

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

    @cached_property
    def groups(self) -> tuple[LayerGroup, ...]:
        return group_layers(self.layers)

    @cached_property
    def group_page_bytes(self) -> tuple[int, ...]:
        """Bytes of one page of each group."""
        numbers = (
            sum(self.layers[index].numbers_per_token for index in group.layers)
            for group in self.groups
        )
        return tuple(self.page_size * ITEM_BYTES[self.dtype] * count for count in numbers)

    @property
    def bytes_per_page(self) -> int:
        """Bytes of a page in every layer."""
        return sum(self.group_page_bytes)

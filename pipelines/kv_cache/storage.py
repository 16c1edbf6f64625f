"""The memory of the pages: per layer, keys and values as tensors on the device."""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quire.pipelines.kv_cache.params import KVCacheParams


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's pages: `k` and `v` [num_pages, num_heads, page_size, dim], contiguous.

    Where keys serve as values too, `v` has dim 0.
    """

    k: torch.Tensor
    v: torch.Tensor


class KVCacheStorage:
    """The pages of every layer, zeroed: `group_pages` of each group of `params`.

    On a CPU the system gives the memory when a page is first written.

    Raises:
        RuntimeError: the device has not that much memory.
    """

    def __init__(
        self, params: KVCacheParams, group_pages: Sequence[int], device: torch.device
    ) -> None:
        dtype: torch.dtype = getattr(torch, params.dtype)

        def pages(num_pages: int, num_heads: int, dim: int) -> torch.Tensor:
            shape = (num_pages, num_heads, params.page_size, dim)
            if device.type == "cpu" and dim:
                return _lazy_zeros(shape, dtype)
            return torch.zeros(shape, dtype=dtype, device=device)

        self.params = params
        pages_of = {
            index: num_pages
            for group, num_pages in zip(params.groups, group_pages, strict=True)
            for index in group.layers
        }
        self.layers = tuple(
            LayerCache(
                pages(pages_of[index], layer.num_heads, layer.key_dim),
                pages(pages_of[index], layer.num_heads, layer.value_dim),
            )
            for index, layer in enumerate(params.layers)
        )

    def scrub(self, pages: Sequence[Sequence[int]]) -> None:
        """Zero the `pages` of each group: NaN in them would survive a mask that multiplies by 0."""
        for group, own in zip(self.params.groups, pages, strict=True):
            for layer in (self.layers[index] for index in group.layers):
                for cache in (layer.k, layer.v):
                    index = torch.tensor(list(own), dtype=torch.int64, device=cache.device)
                    cache.index_fill_(0, index, 0)


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that the system backs with memory when they are first written.

    torch.zeros writes them all at once: 12 GB of pages took 26 s of a start that takes 3 s.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise RuntimeError(f"{num_bytes} bytes: {error.strerror}") from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)

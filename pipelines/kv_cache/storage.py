"""The memory of the pages: per layer, keys and values as tensors on the device."""

from collections.abc import Sequence

import torch

from quire.pipelines.kv_cache.params import KVCacheParams


class KVCacheStorage:
    """`k[layer]` and `v[layer]`: [num_pages, n_kv_heads, page_size, head_dim], contiguous, zeroed.

    Zeroed because kernels read whole pages and mask afterwards: a NaN in an unwritten slot would
    survive the mask. On a CPU the system gives the memory when a page is first written.
    """

    def __init__(self, params: KVCacheParams, num_pages: int, device: torch.device) -> None:
        shape = (num_pages, params.n_kv_heads_per_device, params.page_size, params.head_dim)
        dtype: torch.dtype = getattr(torch, params.dtype)
        layers = range(params.num_layers)
        self.params = params
        self.num_pages = num_pages
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

    def scrub(self, pages: Sequence[int]) -> None:
        """Zero `pages` in every layer."""
        for cache in (*self.k, *self.v):
            index = torch.tensor(list(pages), dtype=torch.int64, device=cache.device)
            cache.index_fill_(0, index, 0)

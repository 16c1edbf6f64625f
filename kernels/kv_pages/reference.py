"""Pages copied and zeroed in plain torch: the definition of correct, and the CPU path."""

import torch

from quire.kernels.split_qkv_ragged.cache_checks import FP8


def copy_pages_reference(
    cache: torch.Tensor, source_pages: torch.Tensor, target_pages: torch.Tensor
) -> None:
    """As `copy_pages`."""
    is_page = _exists(source_pages, cache) & _exists(target_pages, cache)
    pages = _indexable(cache)
    pages[target_pages[is_page].long()] = pages[source_pages[is_page].long()]


def zero_pages_reference(cache: torch.Tensor, pages: torch.Tensor) -> None:
    """As `zero_pages`."""
    _indexable(cache)[pages[_exists(pages, cache)].long()] = 0


def _exists(pages: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    return (pages >= 0) & (pages < len(cache))


def _indexable(cache: torch.Tensor) -> torch.Tensor:
    """`cache` in a dtype that torch can index: a zero of fp8 is the byte 0."""
    return cache.view(torch.uint8) if cache.dtype == FP8 else cache

"""Whole pages of the KV cache: copied on a write to a shared page, zeroed, swapped to the host.

Page numbers of `copy_pages` and `zero_pages` are on the device, so a list of fixed length can be
part of a captured graph; those of `swap_pages` are host values, which the page pool has.
"""

from collections.abc import Sequence
from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.split_qkv_ragged.cache_checks import FP8
from quire.kernels.torch_op import torch_op

CACHE_SHAPE = ("pages", "K", "page_size", "D")
CACHE_DTYPES = (*FLOATS, FP8)
PAGE_DTYPES = (torch.int32, torch.int64)


def _fake(**_: Any) -> None:
    return None


@torch_op(fake=_fake, mutates=("cache",))
def copy_pages(cache: torch.Tensor, source_pages: torch.Tensor, target_pages: torch.Tensor) -> None:
    """Copy page `source_pages[i]` to `target_pages[i]` for every i.

    Targets must be distinct and no source may be a target, as fresh pages are; otherwise those
    targets' content is undefined. A pair with a number outside the cache, as -1, is skipped.

    Args:
        cache: [num_pages, K, page_size, D], bfloat16, float16, float32 or float8_e4m3fn.
        source_pages: int32 or int64 [N] on the device of the cache.
        target_pages: as `source_pages`.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("cache", cache, CACHE_SHAPE, CACHE_DTYPES)
    check_tensor("source_pages", source_pages, ("N",), PAGE_DTYPES, device=cache.device)
    check_tensor(
        "target_pages", target_pages, source_pages.shape, source_pages.dtype, device=cache.device
    )
    if cache.is_cuda:
        from quire.kernels.kv_pages.kernel import copy_pages_triton as run
    else:
        from quire.kernels.kv_pages.reference import copy_pages_reference as run
    run(cache, source_pages, target_pages)


@torch_op(fake=_fake, mutates=("cache",))
def zero_pages(cache: torch.Tensor, pages: torch.Tensor) -> None:
    """Zero these pages; a number outside the cache, as -1, is skipped.

    Args:
        cache: [num_pages, K, page_size, D], bfloat16, float16, float32 or float8_e4m3fn.
        pages: int32 or int64 [N] on the device of the cache; may repeat.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("cache", cache, CACHE_SHAPE, CACHE_DTYPES)
    check_tensor("pages", pages, ("N",), PAGE_DTYPES, device=cache.device)
    if cache.is_cuda:
        from quire.kernels.kv_pages.kernel import zero_pages_triton as run
    else:
        from quire.kernels.kv_pages.reference import zero_pages_reference as run
    run(cache, pages)


@torch_op(fake=_fake, mutates=("target_cache",))
def swap_pages(
    source_cache: torch.Tensor,
    target_cache: torch.Tensor,
    source_pages: Sequence[int],
    target_pages: Sequence[int],
) -> None:
    """Copy pages between the caches of a device and of the host, in either direction.

    Each run of neighbouring pages is one asynchronous copy of torch, by the copy engine; no
    kernel takes part. Copies are ordered on the current stream: the caller waits for it before
    the host reads a target or writes a source.

    Args:
        source_cache: [pages, K, page_size, D], bfloat16, float16, float32 or float8_e4m3fn;
            on the host in pinned memory if the target is on another device.
        target_cache: another cache with pages of this shape and dtype, on the same terms.
        source_pages: pages to read.
        target_pages: where each goes, distinct.

    Raises:
        ValueError: a shape, dtype or memory outside the above, or a page that does not exist.
    """
    check_tensor("source_cache", source_cache, CACHE_SHAPE, CACHE_DTYPES)
    page_shape = ("pages", *source_cache.shape[1:])
    check_tensor("target_cache", target_cache, page_shape, source_cache.dtype)
    if source_cache.device == target_cache.device:
        if source_cache.data_ptr() == target_cache.data_ptr():
            raise ValueError("source_cache and target_cache must be two caches, got one")
    else:
        _check_pinned("source_cache", source_cache)
        _check_pinned("target_cache", target_cache)
    _check_pages("source_pages", source_pages, len(source_cache))
    _check_pages("target_pages", target_pages, len(target_cache))
    if len(source_pages) != len(target_pages):
        raise ValueError(
            "source_pages and target_pages must be of one length, "
            f"got {len(source_pages)} and {len(target_pages)}"
        )
    if len(set(target_pages)) != len(target_pages):
        raise ValueError(f"target_pages must be distinct, got {list(target_pages)}")
    for start, stop in _runs(source_pages, target_pages):
        source, target = source_pages[start], target_pages[start]
        count = stop - start
        target_cache[target : target + count].copy_(
            source_cache[source : source + count], non_blocking=True
        )


def _check_pinned(name: str, cache: torch.Tensor) -> None:
    if cache.device.type == "cpu" and not cache.is_pinned():
        raise ValueError(f"{name} must be in pinned memory, got pageable")


def _check_pages(name: str, pages: Sequence[int], num_pages: int) -> None:
    wrong = [page for page in pages if not 0 <= page < num_pages]
    if wrong:
        raise ValueError(f"{name} must be from 0 to {num_pages - 1}, got {wrong[0]}")


def _runs(source_pages: Sequence[int], target_pages: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of the stretches along which both pages go up by one."""
    pairs = list(zip(source_pages, target_pages, strict=True))
    starts = [
        index
        for index, (source, target) in enumerate(pairs)
        if index == 0 or pairs[index - 1] != (source - 1, target - 1)
    ]
    return list(zip(starts, [*starts[1:], len(pairs)], strict=True)) if pairs else []

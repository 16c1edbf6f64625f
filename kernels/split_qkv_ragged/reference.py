"""Split and cache write in plain torch: the definition of correct."""

import torch

from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.cache_checks import FP8


def split_qkv_ragged_reference(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    batch: RaggedBatch,
    *,
    num_heads: int,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """As `split_qkv_ragged`; without `v_cache`, rows hold no value heads."""
    _, kv_heads, page_size, head_dim = k_cache.shape
    heads_THD = qkv.view(qkv.shape[0], qkv.shape[1] // head_dim, head_dim)
    places = places_of(batch.slots, page_size)
    write_cache(k_cache, places, heads_THD[:, num_heads : num_heads + kv_heads], k_scale)
    if v_cache is not None:
        write_cache(v_cache, places, heads_THD[:, num_heads + kv_heads :], v_scale)
    return heads_THD[:, :num_heads].contiguous()


def places_of(slots: torch.Tensor, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The page of each slot and the offset in it."""
    return slots // page_size, slots % page_size


def write_cache(
    cache: torch.Tensor,
    places: tuple[torch.Tensor, torch.Tensor],
    values_TKD: torch.Tensor,
    scale: float,
) -> None:
    """Write one token per place, in the dtype of the cache or scaled to fp8."""
    if cache.dtype == FP8:
        limit = torch.finfo(FP8).max
        scaled = (values_TKD.float() / scale).clamp(-limit, limit)
        values_TKD = scaled.to(FP8).view(torch.uint8)
        cache = cache.view(torch.uint8)
    pages, offsets = places
    cache[pages, :, offsets] = values_TKD.to(cache.dtype)

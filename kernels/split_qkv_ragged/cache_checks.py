"""What every op that writes keys and values checks of the caches."""

import torch

from quire.kernels.checks import are_alike, check_tensor

FP8 = torch.float8_e4m3fn


def check_cache(
    name: str,
    cache: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    scale: float,
) -> None:
    """Raise ValueError unless `cache` holds rows of `dtype`: as they are, or scaled to fp8.

    `name` is k_cache or v_cache; its scale is k_scale or v_scale.
    """
    check_tensor(name, cache, ("pages", "K", "page_size", "D"), (dtype, FP8), device=device)
    if 0 in cache.shape[1:]:
        raise ValueError(f"{name} must have no empty dimension but pages, got {list(cache.shape)}")
    scale_name = f"{name[0]}_scale"
    if not 0 < scale < float("inf"):
        raise ValueError(f"{scale_name} must be positive and finite, got {scale}")
    if cache.dtype != FP8 and scale != 1:
        raise ValueError(f"{scale_name} must be 1 unless {name} is float8_e4m3fn, got {scale}")


def check_caches(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    k_scale: float,
    v_scale: float,
) -> None:
    """Raise ValueError unless both caches hold rows of `dtype` and are alike."""
    shape = k_cache.shape
    if (
        (v_cache.shape == shape and len(shape) == 4 and 0 not in shape[1:])
        and (k_cache.dtype is dtype and k_cache.device == device and k_scale == v_scale == 1)
        and are_alike(k_cache, v_cache)
    ):
        return
    check_cache("k_cache", k_cache, dtype, device, k_scale)
    check_tensor("v_cache", v_cache, k_cache.shape, k_cache.dtype, device=device)
    check_cache("v_cache", v_cache, dtype, device, v_scale)

"""Ragged attention on a CPU: compiled kernels where they were installed, else torch's."""

import torch

from quire.kernels.flash_attention_ragged.cpu_native import flash_attention_ragged_native
from quire.kernels.native import library
from quire.kernels.ragged_batch import RaggedBatch


def flash_attention_ragged_cpu(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """As `flash_attention_ragged`, for float32 and bfloat16 queries on the CPU.

    The bits differ between the two ways, so which one runs depends on the installation alone.
    """
    native = library()
    if native is None:
        from quire.kernels.flash_attention_ragged.cpu_torch import flash_attention_ragged_torch

        return flash_attention_ragged_torch(
            q_THD,
            k_cache,
            v_cache,
            batch,
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
            sinks=sinks,
            k_scale=k_scale,
            v_scale=v_scale,
        )
    return flash_attention_ragged_native(
        q_THD,
        k_cache,
        v_cache,
        batch,
        native=native,
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
    )

"""Latent attention on a CPU: the compiled attention kernel where it was installed, else torch's."""

import torch

from quire.kernels.flare_mla_decode_ragged.reference import flare_mla_decode_ragged_reference
from quire.kernels.flash_attention_ragged.cpu_native import flash_attention_ragged_native
from quire.kernels.native import library
from quire.kernels.native.row_ops import is_native
from quire.kernels.ragged_batch import RaggedBatch

MIN_PAGE_SIZE = 16
"""Of the compiled kernel, in tokens; its page sizes are powers of two."""


def flare_mla_decode_ragged_cpu(
    q_THD: torch.Tensor,
    latent_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    qk_rope_dim: int = 64,
    decode_plan: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `flare_mla_decode_ragged`.

    To the compiled kernel a latent and its rotated key are the key and the value of one head that
    all queries share; of the value's sum only the latent's columns are kept.
    """
    native, page_size = library(), latent_cache.shape[1]
    is_power = page_size >= MIN_PAGE_SIZE and page_size & (page_size - 1) == 0
    if native is None or not is_native(q_THD) or not is_power:
        return flare_mla_decode_ragged_reference(
            q_THD, latent_cache, batch, scale=scale, qk_rope_dim=qk_rope_dim
        )
    cache = latent_cache.unsqueeze(1)
    out_THD = flash_attention_ragged_native(q_THD, cache, cache, batch, native=native, scale=scale)
    return out_THD[..., : q_THD.shape[2] - qk_rope_dim].contiguous()

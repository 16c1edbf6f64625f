"""The choice of experts on a CPU: the compiled kernel where it was installed, else torch's."""

from typing import Any

import torch

from quire.kernels.moe_router.reference import moe_router_topk_reference
from quire.kernels.native import library
from quire.kernels.native.mixture_ops import router_native
from quire.kernels.native.row_ops import is_native


def moe_router_topk_cpu(
    logits_TE: torch.Tensor,
    top_k: int,
    correction_bias_E: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `moe_router_topk`."""
    native = library()
    if native is not None and is_native(logits_TE):
        return router_native(native, logits_TE, top_k, correction_bias_E, **options)
    return moe_router_topk_reference(logits_TE, top_k, correction_bias_E, **options)

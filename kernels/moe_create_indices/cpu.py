"""Grouping pairs by expert on a CPU: the compiled kernel where it was installed, else torch's."""

import torch

from quire.kernels.moe_create_indices.indices import Indices, empty_indices
from quire.kernels.moe_create_indices.reference import moe_create_indices_reference
from quire.kernels.native import library
from quire.kernels.native.mixture_ops import indices_native


def moe_create_indices_cpu(topk_ids: torch.Tensor, num_local_experts: int) -> Indices:
    """As `moe_create_indices`."""
    native = library()
    if native is None or not topk_ids.is_cpu:
        return moe_create_indices_reference(topk_ids, num_local_experts)
    results = empty_indices(topk_ids, num_local_experts)
    indices_native(native, topk_ids, results)
    return results

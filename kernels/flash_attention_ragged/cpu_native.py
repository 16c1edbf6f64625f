"""Ragged attention on a CPU by the compiled kernel (kernels/native/attention*)."""

import struct

import torch

from quire.kernels.native import InstructionSet, Library
from quire.kernels.ragged_batch import RaggedBatch

CALL = struct.Struct("@8Q13q4d")
"""The fields of AttentionCall (kernels/native/attention.h)."""
TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 2}
BAD_BATCH, NO_MEMORY = 1, 2


def flash_attention_ragged_native(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    native: Library,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    instruction_set: InstructionSet | None = None,
) -> torch.Tensor:
    """As `flash_attention_ragged`, for float32 and bfloat16 queries on the CPU.

    Raises:
        ValueError: the batch has tokens or pages that the tensors do not have.
        MemoryError: no room for the partial states of split contexts.
    """
    tokens, heads, head_dim = q_THD.shape
    pages, kv_heads, page_size, _ = k_cache.shape
    out_THD = torch.empty_like(q_THD)
    call = CALL.pack(
        q_THD.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        out_THD.data_ptr(),
        batch.input_row_offsets.data_ptr(),
        batch.cache_lengths.data_ptr(),
        batch.lookup_table.data_ptr(),
        0 if sinks is None else sinks.data_ptr(),
        tokens,
        *batch.lookup_table.shape,
        *(pages, heads, kv_heads, head_dim, page_size),
        TYPE_CODES[q_THD.dtype],
        TYPE_CODES[k_cache.dtype],
        sliding_window or 0,
        torch.get_num_threads(),
        native.instruction_set if instruction_set is None else instruction_set,
        *(scale, soft_cap or 0.0, k_scale, v_scale),
    )
    status = native.attention(call)
    if status == BAD_BATCH:
        raise ValueError(
            f"batch must have its tokens among the {tokens} of q_THD and its keys in pages of "
            f"lookup_table from 0 to {pages - 1}"
        )
    if status == NO_MEMORY:
        raise MemoryError("no memory for the partial states of attention")
    if status != 0:
        raise ValueError(f"the compiled attention kernel does not know this call: {status}")
    return out_THD

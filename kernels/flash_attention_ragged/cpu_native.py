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
    tokens, heads, _ = q_THD.shape
    out_THD = torch.empty_like(q_THD)
    call = attention_call(
        k_cache,
        v_cache,
        native.instruction_set if instruction_set is None else instruction_set,
        heads=heads,
        dtype=q_THD.dtype,
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
        q=q_THD.data_ptr(),
        out=out_THD.data_ptr(),
        tokens=tokens,
        batch=batch,
        threads=torch.get_num_threads(),
    )
    status = native.attention(call)
    if status == BAD_BATCH:
        raise ValueError(
            f"batch must have its tokens among the {tokens} of q_THD and its keys in pages of "
            f"lookup_table from 0 to {k_cache.shape[0] - 1}"
        )
    if status == NO_MEMORY:
        raise MemoryError("no memory for the partial states of attention")
    if status != 0:
        raise ValueError(f"the compiled attention kernel does not know this call: {status}")
    return out_THD


def attention_call(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    instruction_set: InstructionSet,
    *,
    heads: int,
    dtype: torch.dtype,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    q: int = 0,
    out: int = 0,
    tokens: int = 0,
    batch: RaggedBatch | None = None,
    threads: int = 0,
) -> bytes:
    """An AttentionCall; the last five differ from step to step: addresses, numbers, the batch."""
    pages, kv_heads, page_size, head_dim = k_cache.shape
    tables = (0, 0, 0)
    if batch is not None:
        tables = (
            batch.input_row_offsets.data_ptr(),
            batch.cache_lengths.data_ptr(),
            batch.lookup_table.data_ptr(),
        )
    return CALL.pack(
        *(q, k_cache.data_ptr(), v_cache.data_ptr(), out, *tables),
        0 if sinks is None else sinks.data_ptr(),
        tokens,
        *((0, 0) if batch is None else batch.lookup_table.shape),
        *(pages, heads, kv_heads, head_dim, page_size),
        *(TYPE_CODES[dtype], TYPE_CODES[k_cache.dtype], sliding_window or 0),
        *(threads, instruction_set),
        *(scale, soft_cap or 0.0, k_scale, v_scale),
    )

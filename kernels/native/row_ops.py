"""Calls of the row ops in the compiled library, on CPU tensors that the ops have checked."""

import struct

import torch

from quire.kernels.native import InstructionSet, Library
from quire.kernels.ragged_batch import RaggedBatch

TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 2}
"""DataType of library.h."""
RMS, RMS_ROUNDED_ONCE, LAYER = 0, 1, 2
"""NormKind of rows.h."""
ACTIVATIONS = {
    "silu": 0, "gelu": 1, "gelu_tanh": 2, "gelu_quick": 3, "relu": 4, "relu2": 5, "tanh": 6,
    "sigmoid": 7,
}  # fmt: skip
"""Activation of rows.h."""
BAD_BATCH, NO_MEMORY = 1, 2
"""Status of library.h."""
MAX_ROPE_DIM = 512

NORM = struct.Struct("@6Q6q2d")
ROPE = struct.Struct("@9Q17q4d")
ACTIVATION = struct.Struct("@2Q7q")
EMBEDDING = struct.Struct("@3Q7qd")
BITMASK = struct.Struct("@3Q6q")
"""The fields of the calls in rows.h."""


def is_native(tensor: torch.Tensor) -> bool:
    """Whether the row ops know numbers of this type, here."""
    return tensor.is_cpu and tensor.dtype is not torch.float16


def norm_native(
    native: Library,
    kind: int,
    x_TC: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
    residual_TC: torch.Tensor | None,
    weight_offset: float = 0.0,
    *,
    instruction_set: InstructionSet | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rms_norm` or `layer_norm`, by `kind`, of float32 or bfloat16."""
    out_TC = torch.empty_like(x_TC)
    sum_TC = x_TC if residual_TC is None else torch.empty_like(x_TC)
    call = norm_call(
        kind,
        weight_C,
        bias_C,
        epsilon,
        weight_offset,
        native.instruction_set if instruction_set is None else instruction_set,
        x=x_TC.data_ptr(),
        residual=0 if residual_TC is None else residual_TC.data_ptr(),
        out=out_TC.data_ptr(),
        sum=sum_TC.data_ptr(),
        rows=x_TC.shape[0],
        threads=torch.get_num_threads(),
    )
    if status := native.norm(call):
        raise_for(status)
    return out_TC, sum_TC


def norm_call(
    kind: int,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
    weight_offset: float,
    instruction_set: InstructionSet,
    *,
    x: int = 0,
    residual: int = 0,
    out: int = 0,
    sum: int = 0,
    rows: int = 0,
    threads: int = 0,
) -> bytes:
    """A NormCall. What is named by keyword differs from step to step: addresses and numbers."""
    return NORM.pack(
        *(x, residual, weight_C.data_ptr(), 0 if bias_C is None else bias_C.data_ptr(), out, sum),
        *(rows, weight_C.shape[0], TYPE_CODES[weight_C.dtype], kind, threads, instruction_set),
        *(epsilon, weight_offset),
    )


def activation_native(
    native: Library,
    x_TF: torch.Tensor,
    kind: str,
    *,
    is_gated: bool,
    instruction_set: InstructionSet | None = None,
) -> torch.Tensor:
    """As `activation` or `gated_activation`, of float32 or bfloat16."""
    rows, columns = x_TF.shape
    if is_gated:
        columns //= 2
        out_TF = x_TF.new_empty(rows, columns)
    else:
        out_TF = torch.empty_like(x_TF)
    call = activation_call(
        kind,
        columns,
        x_TF.dtype,
        native.instruction_set if instruction_set is None else instruction_set,
        is_gated=is_gated,
        x=x_TF.data_ptr(),
        out=out_TF.data_ptr(),
        rows=rows,
        threads=torch.get_num_threads(),
    )
    if status := native.activation(call):
        raise_for(status)
    return out_TF


def activation_call(
    kind: str,
    columns: int,
    dtype: torch.dtype,
    instruction_set: InstructionSet,
    *,
    is_gated: bool,
    x: int = 0,
    out: int = 0,
    rows: int = 0,
    threads: int = 0,
) -> bytes:
    """An ActivationCall with `columns` results in a row; keywords as of `norm_call`."""
    return ACTIVATION.pack(
        *(x, out, rows, columns, TYPE_CODES[dtype], ACTIVATIONS[kind], is_gated),
        *(threads, instruction_set),
    )


def rope_native(
    native: Library,
    qkv: torch.Tensor,
    cos_sin: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    num_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    epsilon: float = 1e-6,
    interleaved: bool = False,
    norm_weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    instruction_set: InstructionSet | None = None,
) -> torch.Tensor:
    """As `fused_qk_ragged_rope`, or as `split_qkv_ragged` where `cos_sin` is None.

    Of float32 or bfloat16, heads of at most MAX_ROPE_DIM elements.

    Raises:
        ValueError: the batch has slots or positions that the tensors do not have.
    """
    q_out = qkv.new_empty(qkv.shape[0], num_heads, k_cache.shape[3])
    call = rope_call(
        cos_sin,
        k_cache,
        v_cache,
        native.instruction_set if instruction_set is None else instruction_set,
        dtype=qkv.dtype,
        row_stride=qkv.stride(0),
        num_heads=num_heads,
        q_norm=q_norm,
        k_norm=k_norm,
        epsilon=epsilon,
        interleaved=interleaved,
        norm_weight_offset=norm_weight_offset,
        multiply_before_cast=multiply_before_cast,
        k_scale=k_scale,
        v_scale=v_scale,
        qkv=qkv.data_ptr(),
        q_out=q_out.data_ptr(),
        positions=batch.positions.data_ptr(),
        slots=batch.slots.data_ptr(),
        tokens=qkv.shape[0],
        threads=torch.get_num_threads(),
    )
    status = native.rope(call)
    if status == BAD_BATCH:
        raise ValueError(
            f"batch must have its slots in the {k_cache.shape[0]} pages of k_cache and its "
            f"positions among the {0 if cos_sin is None else cos_sin.shape[0]} of cos_sin"
        )
    if status:
        raise_for(status)
    return q_out


def rope_call(
    cos_sin: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    instruction_set: InstructionSet,
    *,
    dtype: torch.dtype,
    row_stride: int,
    num_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    epsilon: float = 1e-6,
    interleaved: bool = False,
    norm_weight_offset: float = 0.0,
    multiply_before_cast: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    qkv: int = 0,
    q_out: int = 0,
    positions: int = 0,
    slots: int = 0,
    tokens: int = 0,
    threads: int = 0,
) -> bytes:
    """A RopeCall; the last six differ from step to step, as in `norm_call`."""
    pages, kv_heads, page_size, head_dim = k_cache.shape
    max_positions, rotary_dim = (0, 0) if cos_sin is None else cos_sin.shape
    return ROPE.pack(
        *(qkv, 0 if cos_sin is None else cos_sin.data_ptr(), q_out),
        *(k_cache.data_ptr(), v_cache.data_ptr()),
        *(0 if weight is None else weight.data_ptr() for weight in (q_norm, k_norm)),
        *(positions, slots),
        *(tokens, row_stride, num_heads, kv_heads, head_dim, pages, page_size),
        *(rotary_dim, max_positions, interleaved),
        *(weight is not None and weight.shape[0] != head_dim for weight in (q_norm, k_norm)),
        *(multiply_before_cast, TYPE_CODES[dtype], TYPE_CODES[k_cache.dtype]),
        *(threads, instruction_set),
        *(epsilon, norm_weight_offset, k_scale, v_scale),
    )


def embedding_native(
    native: Library,
    tokens_T: torch.Tensor,
    weight_VC: torch.Tensor,
    *,
    scale: float = 1.0,
    instruction_set: InstructionSet | None = None,
) -> torch.Tensor | None:
    """As `embedding`, of float32 or bfloat16; None if a token is not in the table."""
    vocabulary, columns = weight_VC.shape
    count = tokens_T.shape[0]
    out_TC = weight_VC.new_empty(count, columns)
    status = native.embedding(
        EMBEDDING.pack(
            tokens_T.data_ptr(),
            weight_VC.data_ptr(),
            out_TC.data_ptr(),
            count,
            vocabulary,
            columns,
            TYPE_CODES[weight_VC.dtype],
            tokens_T.dtype == torch.int64,
            torch.get_num_threads(),
            native.instruction_set if instruction_set is None else instruction_set,
            scale,
        )
    )
    if status == BAD_BATCH:
        return None
    if status:
        raise_for(status)
    return out_TC


def bitmask_native(
    native: Library,
    logits: torch.Tensor,
    bitmask: torch.Tensor,
    rows: torch.Tensor | None = None,
    *,
    instruction_set: InstructionSet | None = None,
) -> None:
    """As `apply_token_bitmask`."""
    count, vocabulary = logits.shape
    status = native.bitmask(
        BITMASK.pack(
            logits.data_ptr(),
            bitmask.data_ptr(),
            0 if rows is None else rows.data_ptr(),
            count,
            vocabulary,
            bitmask.shape[1],
            -1 if rows is None else rows.shape[0],
            torch.get_num_threads(),
            native.instruction_set if instruction_set is None else instruction_set,
        )
    )
    if status:
        raise_for(status)


def raise_for(status: int) -> None:
    """Raise what a Status other than OK says.

    Raises:
        MemoryError: there was none.
        ValueError: the library does not know such a call.
    """
    if status == NO_MEMORY:
        raise MemoryError("no memory for what a compiled kernel works with")
    raise ValueError(f"the compiled library does not know this call: {status}")

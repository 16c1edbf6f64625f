"""Sampling by the compiled kernel (kernels/native/sampling*)."""

import struct
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quire.kernels.native import InstructionSet, Library
from quire.kernels.native.row_ops import BAD_BATCH, raise_for
from quire.kernels.sampling.inputs import SamplingInputs

CALL = struct.Struct("@9Q4q")
PENALTIES = struct.Struct("@3Q3q3d")
"""The fields of SamplingCall and PenaltyCall (kernels/native/sampling.h)."""
LOGITS = struct.Struct("@3Q4q")
"""The fields of LogitsCall (kernels/native/rows.h)."""


def sample_tokens_native(
    native: Library,
    logits_RV: torch.Tensor,
    inputs: SamplingInputs,
    *,
    instruction_set: InstructionSet | None = None,
) -> torch.Tensor:
    """As `sample_tokens`, on the CPU; -1 where the last bits of a logarithm or of a sum decide.

    One row in tens of thousands is such.

    Raises:
        MemoryError: no room for the distances of a row.
    """
    tokens = np.empty(len(logits_RV), dtype=np.int32)
    arrays = (
        _plain(inputs.temperature, np.float32),
        _plain(inputs.top_k, np.int32),
        _plain(inputs.top_p, np.float32),
        min_p_limits(inputs.min_p),
        _plain(inputs.seed, np.int64),
        _plain(inputs.choice, np.int32),
        _plain(inputs.position, np.int32),
        tokens,
    )
    status = native.sampling(
        CALL.pack(
            logits_RV.data_ptr(),
            *(array.ctypes.data for array in arrays),
            *logits_RV.shape,
            torch.get_num_threads(),
            native.instruction_set if instruction_set is None else instruction_set,
        )
    )
    if status:
        raise_for(status)
    return torch.from_numpy(tokens)


def min_p_limits(min_p_R: NDArray[np.float32]) -> NDArray[np.float32]:
    """`reference.min_p_limit` of each row."""
    if not min_p_R.any():
        return np.full(min_p_R.shape, np.inf, dtype=np.float32)
    limits: NDArray[np.float32] = torch.from_numpy(min_p_R).double().log().neg().float().numpy()
    return limits


def _plain(values: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    return np.ascontiguousarray(values, dtype=dtype)


def apply_penalties_native(
    native: Library,
    logits_V: torch.Tensor,
    prompt: NDArray[np.int32],
    generated: NDArray[np.int32],
    *,
    frequency: float,
    presence: float,
    repetition: float,
) -> bool:
    """Change one row as `apply_penalty_rows` does, on the CPU.

    False, and nothing is changed, where a token is not in the vocabulary.
    """
    prompt, generated = _plain(prompt, np.int32), _plain(generated, np.int32)
    status = native.penalties(
        PENALTIES.pack(
            logits_V.data_ptr(),
            prompt.ctypes.data,
            generated.ctypes.data,
            *(len(logits_V), len(prompt), len(generated)),
            *(frequency, presence, repetition),
        )
    )
    if status not in (0, BAD_BATCH):
        raise_for(status)
    return status == 0


def widen_logits_native(
    native: Library, logits_RV: torch.Tensor, *, instruction_set: InstructionSet | None = None
) -> torch.Tensor:
    """As `widen_logits`, of contiguous bfloat16 on the CPU."""
    wide_RV = torch.empty(logits_RV.shape, dtype=torch.float32)
    call = LOGITS.pack(
        *(logits_RV.data_ptr(), wide_RV.data_ptr(), 0, *logits_RV.shape, torch.get_num_threads()),
        native.instruction_set if instruction_set is None else instruction_set,
    )
    if status := native.widen(call):
        raise_for(status)
    return wide_RV


def find_invalid_rows_native(
    native: Library, logits_RV: torch.Tensor, *, instruction_set: InstructionSet | None = None
) -> torch.Tensor:
    """As `find_invalid_rows`, of contiguous float32 on the CPU."""
    invalid_R = torch.empty(len(logits_RV), dtype=torch.bool)
    call = LOGITS.pack(
        *(0, logits_RV.data_ptr(), invalid_R.data_ptr(), *logits_RV.shape, torch.get_num_threads()),
        native.instruction_set if instruction_set is None else instruction_set,
    )
    if status := native.invalid_rows(call):
        raise_for(status)
    return invalid_R

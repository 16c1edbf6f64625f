"""C++ kernels for the CPU, built when Quire is installed; without them Quire computes with torch.

The library has a plain C interface and threads of its own (threads.h), which all its kernels share.
One file holds a variant of each kernel per instruction set, and the machine's best one is used.
No torch.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

FOLDER = Path(__file__).parent
INTERFACE = 6
"""As in library.h: a library of another one was built before this Python code."""


class InstructionSet(IntEnum):
    """The variants of each kernel; a processor has all those below its best.

    Only the linear layer has variants for VNNI and AMX.
    """

    GENERIC = 0
    AVX2 = 1
    AVX512 = 2
    AVX512_VNNI = 3
    AVX512_BF16 = 4
    AMX_BF16 = 5


class Library:
    """The functions of the compiled library, and the instruction sets to call them with.

    Raises:
        OSError: this process cannot load it.
        AttributeError: it lacks a function.
        ValueError: it has another interface.
    """

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        functions.quire_interface.restype = ctypes.c_int64
        if functions.quire_interface() != INTERFACE:
            raise ValueError(f"{path} has interface {functions.quire_interface()}, not {INTERFACE}")
        functions.quire_best_instruction_set.restype = ctypes.c_int64
        self.instruction_set = InstructionSet(functions.quire_best_instruction_set())
        self.attention = functions.quire_attention
        self.attention.argtypes = [ctypes.c_char_p]
        functions.quire_linear_instruction_set.restype = ctypes.c_int64
        self.linear_instruction_set = InstructionSet(functions.quire_linear_instruction_set())
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.linear_bytes = functions.quire_linear_bytes
        self.linear_bytes.argtypes = [ctypes.c_char_p]
        self.linear_bytes.restype = number
        self.linear_pack = functions.quire_linear_pack
        self.linear_pack.argtypes = [ctypes.c_char_p, pointer, number]
        self.linear_pack_rows = functions.quire_linear_pack_rows
        self.linear_pack_rows.argtypes = [ctypes.c_char_p, pointer, number, number, number]
        self.linear_rows = functions.quire_linear_rows
        self.linear_rows.argtypes = [ctypes.c_char_p, pointer, number, pointer, number]
        self.linear = functions.quire_linear
        self.linear.argtypes = [ctypes.c_char_p, pointer, pointer, number, number]
        self.grouped_linear = _taking_a_call(functions.quire_grouped_linear)
        self.read = functions.quire_read
        self.read.argtypes = [number, number, number, pointer, number]
        self.read.restype = number
        self.is_finite = functions.quire_is_finite
        self.is_finite.argtypes = [number, number, pointer, number, number]
        self.norm = _taking_a_call(functions.quire_norm)
        self.rope = _taking_a_call(functions.quire_rope)
        self.activation = _taking_a_call(functions.quire_activation)
        self.embedding = _taking_a_call(functions.quire_embedding)
        self.bitmask = _taking_a_call(functions.quire_bitmask)
        self.router = _taking_a_call(functions.quire_router)
        self.indices = _taking_a_call(functions.quire_indices)
        self.gate = _taking_a_call(functions.quire_gate)
        self.combine = _taking_a_call(functions.quire_combine)
        self.sampling = _taking_a_call(functions.quire_sampling)
        self.widen = _taking_a_call(functions.quire_widen)
        self.invalid_rows = _taking_a_call(functions.quire_invalid_rows)
        self.penalties = _taking_a_call(functions.quire_penalties)
        self.program = functions.quire_program
        self.program.argtypes = [ctypes.c_char_p, number, *[ctypes.c_char_p] * 3]


def _taking_a_call(function: Any) -> Callable[[bytes], int]:
    """A function that takes a packed call, by which ctypes has one argument to convert."""
    function.argtypes = [ctypes.c_char_p]
    return cast(Callable[[bytes], int], function)


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The compiled library, or None where it was not built or this process cannot load it."""
    return load_library(FOLDER)


def load_library(folder: Path) -> Library | None:
    """The first library of a folder that loads: there may be one for each Python version."""
    for path in sorted(folder.glob("_kernels*.so")):
        # Not ours: built for another machine or from other sources.
        with suppress(OSError, AttributeError, ValueError):
            return Library(path)
    return None

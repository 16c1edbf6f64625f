"""C++ kernels for the CPU, built when Quire is installed; without them Quire computes with torch.

The library has a plain C interface and runs on the threads of torch's OpenMP pool. One file holds
a variant of each kernel per instruction set, and the machine's best one is used.
"""

import ctypes
from contextlib import suppress
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

# Loads the OpenMP library whose functions the library below takes from the process.
import torch  # noqa: F401

FOLDER = Path(__file__).parent
INTERFACE = 1
"""As in attention.h: a library of another one was built before this Python code."""


class InstructionSet(IntEnum):
    """The variants of each kernel; a processor has all those below its best."""

    GENERIC = 0
    AVX2 = 1
    AVX512 = 2
    AVX512_BF16 = 3


class Library:
    """The functions of the compiled library, and the instruction set to call them with.

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


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The compiled library, or None where it was not built or this process cannot load it."""
    return load_library(FOLDER)


def load_library(folder: Path) -> Library | None:
    """The first library of a folder that loads: there may be one for each Python version."""
    for path in sorted(folder.glob("_kernels*.so")):
        # Not ours: built for another machine or from other sources, or torch has no OpenMP with
        # the functions that it calls.
        with suppress(OSError, AttributeError, ValueError):
            return Library(path)
    return None

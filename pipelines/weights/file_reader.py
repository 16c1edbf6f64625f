"""Reads a tensor's bytes. Files are read, not mapped: one that shrinks meanwhile is an error with
a name, not SIGBUS. No torch."""

import os
from io import FileIO

import numpy as np
from numpy.typing import NDArray

from quire.config.errors import ModelError
from quire.kernels.native import library
from quire.pipelines.weights.tensor_entry import TensorEntry


def read_bytes(entry: TensorEntry, threads: int = 1) -> NDArray[np.uint8]:
    """The bytes of `entry`, by `threads` at once where there is the compiled library.

    Raises:
        ModelError: the file ended early, or is gone, or its disk fails.
    """
    buffer = np.empty(entry.num_bytes, dtype=np.uint8)
    try:
        with entry.path.open("rb", buffering=0) as file:
            count = _read_into(buffer, file, entry.begin, threads)
    except OSError as error:
        raise ModelError(f"{entry.path}: cannot be read: {error.strerror}") from None
    if count != entry.num_bytes:
        raise entry.wrong(f"{entry.num_bytes} bytes", f"{count} bytes")
    return buffer


def _read_into(buffer: NDArray[np.uint8], file: FileIO, begin: int, threads: int) -> int:
    """How many bytes there are from `begin` on, up to the buffer's size."""
    native = library()
    if native is not None:
        count: int = native.read(file.fileno(), begin, buffer.size, buffer.ctypes.data, threads)
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        return count
    file.seek(begin)
    position = 0
    while position < buffer.size and (count := file.readinto(buffer.data[position:])):
        position += count
    return position

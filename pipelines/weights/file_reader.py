"""Reads a tensor's bytes. Files are read, not mapped: one that shrinks meanwhile is an error with
a name, not SIGBUS. No torch."""

import numpy as np
from numpy.typing import NDArray

from quire.config.errors import ModelError
from quire.pipelines.weights.tensor_entry import TensorEntry


def read_bytes(entry: TensorEntry) -> NDArray[np.uint8]:
    """The bytes of `entry`.

    Raises:
        ModelError: the file ended early, or is gone, or its disk fails.
    """
    try:
        return _read(entry)
    except OSError as error:
        raise ModelError(f"{entry.path}: cannot be read: {error.strerror}") from None


def _read(entry: TensorEntry) -> NDArray[np.uint8]:
    buffer = np.empty(entry.num_bytes, dtype=np.uint8)
    view = buffer.data
    position = 0
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.begin)
        while position < entry.num_bytes:
            count = file.readinto(view[position:])
            if not count:
                raise entry.wrong(f"{entry.num_bytes} bytes", f"{position} bytes")
            position += count
    return buffer

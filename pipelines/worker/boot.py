"""What the supervisor writes to a new worker's standard input: one JSON line, then nothing.

The pipe stays open for the worker's life. Its end of file means the API process is gone.
"""

from typing import Any

import msgspec

MAX_MESSAGE_BYTES = 256 * 1024**2
"""Of one message on the endpoint, either way; a larger one ends the connection."""


class Boot(msgspec.Struct, frozen=True):
    """How to come up: `endpoint` is the ipc:// address to connect to, `settings` the fields of
    `ModelSettings`, `folder` the resolved model folder."""

    epoch: int
    endpoint: str
    folder: str
    settings: dict[str, Any]

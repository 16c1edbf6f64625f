"""The environment and the cache folder of what converts pickled weights."""

import os
from pathlib import Path

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")


def converter_environment() -> dict[str, str]:
    """What the converter inherits: no token, no proxy, nothing that changes how torch loads."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def cache_folder() -> Path:
    """Where Quire keeps what it can make again, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "quire"

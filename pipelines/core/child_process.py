"""What a child of the API process does on Linux so that it neither outlives nor outweighs it."""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which started it, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def prefer_as_oom_victim() -> None:
    """Out of memory, the kernel should take a child, which is restarted, not the API process with
    the streams."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        return

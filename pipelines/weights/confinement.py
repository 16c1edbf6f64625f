"""What a process gives up before it reads a file that may be made to attack it. No torch.

Limits of the kernel hold whatever happens. The audit hook (PEP 578) holds for Python: code that a
file smuggled past the unpickler finds no socket, no process, no import and no file to write.
"""

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Collection
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_NO_NEW_PRIVS = 38

_REFUSED = (
    ("compile", "exec", "import", "open", "code.", "cpython.run", "ctypes.", "ensurepip.")
    + (
        "ftplib.",
        "glob.",
        "http.",
        "imaplib.",
        "marshal.",
        "nntplib.",
        "os.",
        "pathlib.",
        "pickle.",
    )
    + ("poplib.", "pty.", "shutil.", "signal.", "smtplib.", "socket.", "sqlite3.", "subprocess.")
    + ("syslog.", "telnetlib.", "tempfile.", "urllib.", "webbrowser.")
)
"""Beginnings of the names of audit events, https://docs.python.org/3/library/audit_events.html."""


class Refused(RuntimeError):
    """Something that a confined process may not do."""


def leave_network() -> None:
    """Move to a network namespace without interfaces, where the kernel lets this user; before any
    thread is started."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def limit_resources(*, more_memory: int, file_bytes: int, cpu_seconds: int) -> None:
    """From here on: so many bytes of address space beyond today's, so many bytes in any file
    written, so much CPU time, and no core dump."""
    with contextlib.suppress(FileNotFoundError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + more_memory)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_CPU, cpu_seconds)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def confine(readable: Collection[Path], writable: Path) -> None:
    """From here on Python opens `readable` to read, files directly in `writable` to create, and
    nothing else; for good, and whatever is refused raises `Refused`."""
    sources = frozenset(map(str, readable))
    target = str(writable)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    dirname = os.path.dirname

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if not event.startswith(_REFUSED):
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and isinstance(path, str):
                if path in sources and not flags & writing:
                    return
                if dirname(path) == target:
                    return
        raise Refused(f"{event} {arguments[:1]!r:.200} is refused while weights are converted")

    sys.addaudithook(hook)

"""What this process may use of its machine: the cores and the memory of its container. No torch."""

import os
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores this process may run on, rounded up from the quota of its cgroup (v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, _, period = _read("cpu.max").partition(" ")
    limit = -(-int(quota) // int(period)) if quota.isdecimal() and period.isdecimal() else None
    return max(1, min(count for count in (cores, limit) if count is not None))


def available_memory() -> int:
    """Bytes that can be allocated now without swapping, within the limit of its cgroup (v2)."""
    free = psutil.virtual_memory().available
    limit, current = _read("memory.max"), _read("memory.current")
    if not (limit.isdecimal() and current.isdecimal()):
        return free
    statistics = dict(line.split() for line in _read("memory.stat").splitlines())
    reclaimable = int(statistics.get("inactive_file", 0))
    return max(0, min(free, int(limit) - int(current) + reclaimable))


def _read(name: str) -> str:
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""

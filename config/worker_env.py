"""The environment of the model worker: this process's own, with threads that spin only briefly, and
memory that is used again."""

from quire.config.api_keys_env import environment_without_keys

SPIN_COUNT = "5000"
"""How long an OpenMP thread spins before it sleeps.

Longer is faster alone and slower beside a busy neighbour, such as the API process. Milliseconds of
a decode step (30 layers, 135M parameters, one stream, 2 cores, 2026-11-21), quiet / one core busy:
libgomp's default 36 / 698, 20000 35 / 172, 5000 45 / 90, never (OMP_WAIT_POLICY=PASSIVE) 70 / 52.
"""

HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2), "MALLOC_TRIM_THRESHOLD_": str(256 * 1024**2)}
"""glibc: what is freed, up to 32 MB (its limit) each, is given out again instead of to the system.

Loading reads each layer into memory that it then frees. New memory has to be cleared, and in a virtual
machine may first have to be found: 2.1 s for a GB, where a GB that is there is read in 0.2 s
(2026-11-21).
"""


def worker_environment() -> dict[str, str]:
    """What the worker inherits: no API key; a value that the user set stays."""
    inherited = {**HEAP, **environment_without_keys()}
    if "OMP_WAIT_POLICY" in inherited:
        return inherited
    return {"GOMP_SPINCOUNT": SPIN_COUNT, **inherited}

"""The environment of the model worker: this process's own, with threads that wait without spinning."""

import os


def worker_environment() -> dict[str, str]:
    """What the worker inherits.

    OpenMP threads that spin while they wait take the core the API process needs: with one busy
    neighbour on two cores a 0.6 ms matmul took 4 to 10 ms. A value that the user set stays.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}

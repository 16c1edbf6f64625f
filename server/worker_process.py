"""The model worker's process, from its beginning: it imports what it needs, then waits for its boot
line (`pipelines/worker/boot.py`). Imports little, so that it can be the first thing a start does."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from quire.config.worker_env import worker_environment


async def start_worker_process() -> asyncio.subprocess.Process:
    """A new interpreter; the pipe to its standard input is its lifeline.

    Raises:
        OSError: the system has no room for it.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "quire.pipelines.worker",
        stdin=asyncio.subprocess.PIPE,
        env=worker_environment(),
    )


@contextlib.asynccontextmanager
async def worker_ahead() -> AsyncIterator[asyncio.subprocess.Process | None]:
    """A worker that gets ready to be told its model while this process does so too.

    It is killed at the end, if it still lives. None where the system refused it: who needs a worker
    will see why.
    """
    process = None
    with contextlib.suppress(OSError):
        process = await start_worker_process()
    try:
        yield process
    finally:
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

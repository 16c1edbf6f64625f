"""`BatchRunner`: the batches that are not finished, each at work, and the housekeeping."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial

from quire.server.batches.job import BatchJob, Workplace
from quire.server.errors import StateUnavailable

SWEEP_SECONDS = 5.0
RETRY_SECONDS = 30.0

logger = logging.getLogger(__name__)


class BatchRunner:
    """Goes on with the batches of before at its start. `clock` gives seconds since 1970."""

    def __init__(self, place: Workplace, clock: Callable[[], float]) -> None:
        self._place = place
        self._clock = clock
        self._jobs: dict[int, BatchJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    def start(self) -> None:
        self._spawn(self._keep_house(), self.start)

    async def look(self) -> None:
        """Take up the batches that are new, and those that were cancelled or have expired."""
        for row in await self._place.store.run(lambda store: store.batches.unfinished()):
            if self._is_stopped:
                return
            if row.number not in self._jobs:
                self._jobs[row.number] = job = BatchJob(row, self._place)
                self._spawn(self._work(job), partial(self._jobs.pop, row.number, None))
            if row.status == "cancelling" or row.expires_at <= self._clock():
                self._jobs[row.number].interrupt()

    async def stop(self) -> None:
        """Abort what runs; the store keeps what is done, and the next start goes on from there."""
        self._is_stopped = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._place.writer.close()

    async def _keep_house(self) -> None:
        while True:
            try:
                await self.look()
                await self._place.store.run(lambda store: store.purge())
                await self._tell()
            except StateUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _tell(self) -> None:
        place = self._place
        place.metrics.set_load(
            unfinished=await place.store.run(lambda store: store.batches.num_open_lines()),
            running=place.gate.num_inside,
            stored=place.store.folder.quota.taken,
        )

    async def _work(self, job: BatchJob) -> None:
        has_ended = False
        while not has_ended:
            try:
                await job.run()
                has_ended = True
            except* StateUnavailable as errors:
                logger.error("batch waits id=%s why=%s", job.batch.id, errors.exceptions[0])
            if not has_ended:
                await asyncio.sleep(RETRY_SECONDS)
        del self._jobs[job.batch.number]

    def _spawn(self, work: Coroutine[None, None, None], again: Callable[[], object]) -> None:
        """`again`: what is called some time after `work` stopped on a bug."""

        def on_end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("unhandled error of a batch", exc_info=error)
                task.get_loop().call_later(RETRY_SECONDS, again)

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(on_end)

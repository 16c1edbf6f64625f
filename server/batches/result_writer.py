"""Results on their way to the store, many in one transaction."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from quire.server.batches.line_table import LineResult
from quire.server.batches.store import Store, StoreThread
from quire.server.errors import StateUnavailable

RETRY_SECONDS = 5.0

logger = logging.getLogger(__name__)


class ResultWriter:
    """Writes what has gathered while it wrote. Where the disk is full, results wait, and with them
    the lines that would make more."""

    def __init__(self, store: StoreThread) -> None:
        self._store = store
        self._waiting: list[tuple[LineResult, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def save(self, result: LineResult) -> None:
        """Returns when the result is in the store."""
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((result, saved))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())
            self._task.add_done_callback(self._on_end)
        await saved

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _write(self) -> None:
        while True:
            # Whoever gave up waiting has a batch that has ended.
            self._waiting = [pair for pair in self._waiting if not pair[1].done()]
            if not self._waiting:
                return
            batch = list(self._waiting)
            try:
                await self._store.run(_saving([result for result, _ in batch]))
            except StateUnavailable as error:
                logger.warning("results wait count=%d why=%s", len(batch), error.message)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for _, saved in batch:
                if not saved.done():
                    saved.set_result(None)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """Tell those who wait of a bug: none of them would ever hear of it."""
        error = None if task.cancelled() else task.exception()
        for _, saved in self._waiting:
            if error is not None and not saved.done():
                saved.set_exception(error)


def _saving(results: Sequence[LineResult]) -> Callable[[Store], None]:
    return lambda store: store.lines.save(results)

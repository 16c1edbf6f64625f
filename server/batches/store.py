"""`Store`: what the state folder holds; `StoreThread`: the one thread that works on it."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from quire.server.batches.batch_table import BatchTable
from quire.server.batches.database import database_errors, open_database
from quire.server.batches.file_table import FileTable
from quire.server.batches.line_table import LineTable
from quire.server.batches.state_folder import StateFolder, disk_errors
from quire.server.errors import StateUnavailable, StorageFull

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Store:
    """Files, batches and lines of a folder. To be used by the thread that made it.

    `clock` gives seconds since 1970.

    Raises:
        StateUnavailable: see `open_database`.
    """

    def __init__(self, folder: StateFolder, clock: Callable[[], float]) -> None:
        self._connection = connection = open_database(folder.database)
        self.files = FileTable(connection, folder, clock)
        self.lines = LineTable(connection, folder.quota)
        self.batches = BatchTable(connection, folder, self.files, self.lines, clock)
        try:
            if count := folder.sweep(self.files.ids()):
                logger.warning("removed what a crash left files=%d", count)
            taken = sum(table.count_bytes() for table in (self.files, self.lines, self.batches))
        except BaseException:
            connection.close()
            raise
        folder.quota.add(taken)

    def purge(self) -> None:
        """Remove what has expired, and give its space back."""
        self.batches.purge()
        self.files.purge()
        self._connection.execute("PRAGMA incremental_vacuum").fetchall()

    def close(self) -> None:
        self._connection.close()


class StoreThread:
    """A `Store` in a thread of its own, opened by its first work. The disk is never waited for in
    the event loop."""

    def __init__(self, folder: StateFolder, clock: Callable[[], float]) -> None:
        self.folder = folder
        self._clock = clock
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._store: Store | None = None
        self._failure: StateUnavailable | None = None

    async def run(self, work: Callable[[Store], T]) -> T:
        """What `work` returns or raises. Once begun it ends, though its caller be cancelled.

        Raises:
            StateUnavailable, StorageFull: the disk or the database failed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, work)

    def _run(self, work: Callable[[Store], T]) -> T:
        try:
            with disk_errors(), database_errors():
                return work(self._opened())
        except StateUnavailable as error:
            if error.__cause__ is not None:
                logger.error("%s why=%s", error.message, error.__cause__)
            raise

    def _opened(self) -> Store:
        if self._failure is not None:
            raise self._failure
        if self._store is None:
            try:
                self._store = Store(self.folder, self._clock)
            except StorageFull:
                raise
            except StateUnavailable as error:
                # A damaged database does not mend itself, and checking it again takes long.
                self._failure = error
                logger.error("%s; there are no files and batches until it is mended", error.message)
                raise
        return self._store

    async def close(self) -> None:
        """Let the work under way end, then close the database and unlock the folder."""

        def close() -> None:
            if self._store is not None:
                self._store.close()

        await asyncio.get_running_loop().run_in_executor(self._executor, close)
        self._executor.shutdown()
        self.folder.close()

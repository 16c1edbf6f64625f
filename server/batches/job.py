"""One batch at work: its input checked, its lines run, its files written."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.server.batches.batch_table import BatchRow
from quire.server.batches.gate import Gate
from quire.server.batches.input_file import InputFile, read_body
from quire.server.batches.line_request import LineReply, LineRoutes
from quire.server.batches.line_table import NO_TOKENS, Line, LineResult
from quire.server.batches.metrics import BatchMetrics
from quire.server.batches.output_lines import response_line
from quire.server.batches.result_writer import ResultWriter
from quire.server.batches.schema import UNFINISHED, Status
from quire.server.batches.state_folder import disk_errors
from quire.server.batches.store import Store, StoreThread
from quire.server.engine import Caller
from quire.server.errors import InternalError, StorageFull

logger = logging.getLogger(__name__)

LINES_AT_ONCE = 256
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 10.0
MAX_INTERNAL_ERRORS = 3
"""Of one line; then it is taken for guilty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """What all jobs share. `max_line` is the most bytes of a line of input."""

    store: StoreThread
    routes: LineRoutes
    gate: Gate
    writer: ResultWriter
    metrics: BatchMetrics
    max_line: int


class BatchJob:
    """Takes a batch from wherever it stands to its end, or as far as it comes."""

    def __init__(self, batch: BatchRow, place: Workplace) -> None:
        self.batch = batch
        self._place = place
        self._owner = Caller(batch.owner, batch.owner_name, is_background=True)
        self._running: asyncio.Task[None] | None = None
        self._is_interrupted = False

    def interrupt(self) -> None:
        """The batch was cancelled or has expired: what is not done stays so."""
        self._is_interrupted = True
        if self._running is not None:
            self._running.cancel()

    async def run(self) -> None:
        """May be run again after it failed.

        Raises:
            StateUnavailable, StorageFull: alone or in a group.
        """
        store, number = self._place.store, self.batch.number
        status = await store.run(lambda store: store.batches.status(number))
        if status not in UNFINISHED:
            return
        if status == "validating":
            status = await self._check()
        if status == "in_progress" and not self._is_interrupted:
            self._running = asyncio.create_task(self._run_lines())
            try:
                await asyncio.wait({self._running})
            finally:
                self._running.cancel()
                await asyncio.wait({self._running})
            if not self._running.cancelled():
                self._running.result()
        if status != "failed":
            status = await store.run(lambda store: store.batches.finalize(self.batch))
        await self._log_end(status)

    async def _log_end(self, status: Status) -> None:
        batch = await self._place.store.run(
            lambda store: store.batches.get(self.batch.id, self.batch.owner)
        )
        counts = batch["request_counts"]
        logger.info("batch ended id=%s", self.batch.id, extra={"status": status, **counts})
        self._place.metrics.on_batch_end(status)

    # The input.

    async def _check(self) -> Status:
        """Read the whole input file, in pieces; the batch's status after it."""
        store, number = self._place.store, self.batch.number
        path = store.folder.blob(self.batch.input_file_id)
        source = InputFile(path, self.batch.endpoint, max_line=self._place.max_line)
        await store.run(lambda store: store.batches.begin_checking(number))
        errors = source.errors
        try:
            pieces = source.lines()
            while (lines := await asyncio.to_thread(_next, pieces)) is not None:
                if not errors:
                    await store.run(_adding(number, lines))
        except StorageFull as error:
            errors = [
                {"code": "storage_full", "line": None, "message": error.message, "param": None}
            ]
        if errors:
            return await store.run(lambda store: store.batches.fail(number, errors))
        logger.info("batch checked id=%s endpoint=%s", self.batch.id, self.batch.endpoint)
        return await store.run(lambda store: store.batches.begin(number, source.model))

    # The lines.

    async def _run_lines(self) -> None:
        gate = self._place.gate
        async with asyncio.TaskGroup() as group:
            async for line in self._lines():
                await gate.enter(self._owner)
                task = group.create_task(self._run_line(line))
                # A task that is cancelled before it began runs nothing of its own.
                task.add_done_callback(lambda _: gate.leave())

    async def _lines(self) -> AsyncIterator[Line]:
        """Those that are not done, in their order, from the store as they are needed."""
        last = 0
        while lines := await self._place.store.run(_next_lines(self.batch.number, last)):
            for line in lines:
                yield line
            last = lines[-1].number

    async def _run_line(self, line: Line) -> None:
        """It keeps its place at the gate until its result is in the store."""
        reply = await self._answer(line)
        text = response_line(
            line.custom_id, status=reply.status, request_id=reply.request_id, body=reply.body
        )
        result = LineResult(
            batch=self.batch.number,
            line=line.number,
            text=text,
            is_error=reply.is_error,
            tokens=NO_TOKENS if reply.is_error else reply.tokens,
        )
        await self._place.writer.save(result)
        self._place.metrics.on_line_end(is_error=reply.is_error)

    async def _answer(self, line: Line) -> LineReply:
        """The route's answer, asked for again while it is not the line's fault."""
        place, backoff, internal_errors = self._place, FIRST_BACKOFF, 0
        path = place.store.folder.blob(self.batch.input_file_id)
        body = await asyncio.to_thread(_read, path, line)
        while True:
            reply = await place.routes.send(self.batch.endpoint, body, self._owner)
            internal_errors += reply.status == InternalError.status
            if not reply.may_pass_later or internal_errors >= MAX_INTERNAL_ERRORS:
                return reply
            place.metrics.on_retry()
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)


def _adding(batch: int, lines: Sequence[Line]) -> Callable[[Store], None]:
    return lambda store: store.lines.add(batch, lines)


def _next_lines(batch: int, last: int) -> Callable[[Store], list[Line]]:
    return lambda store: store.lines.next(batch, after=last, limit=LINES_AT_ONCE)


def _next(pieces: Iterator[list[Line]]) -> list[Line] | None:
    with disk_errors():
        return next(pieces, None)


def _read(path: Path, line: Line) -> dict[str, Any]:
    with disk_errors():
        return read_body(path, line)

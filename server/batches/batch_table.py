"""The batches of the state folder."""

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from quire.config.limits import LIMITS
from quire.server.batches.database import transaction
from quire.server.batches.file_table import ROW_BYTES, FileTable, NewFile, new_file_id
from quire.server.batches.line_table import LineTable
from quire.server.batches.schema import (
    CANCELLABLE,
    UNFINISHED,
    BatchError,
    BatchObject,
    BatchRequest,
    Status,
)
from quire.server.batches.state_folder import StateFolder, new_blob
from quire.server.errors import InvalidRequest, NotFound

WINDOW_SECONDS = 24 * 3600

_TIMES = (
    *("created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at"),
    *("expired_at", "cancelling_at", "cancelled_at"),
)
_ENDED = "status NOT IN ('validating', 'in_progress', 'finalizing', 'cancelling')"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """What the runner knows of a batch. `number` is its primary key."""

    number: int
    id: str
    owner: str
    owner_name: str | None
    endpoint: str
    input_file_id: str
    output_seconds: int
    expires_at: int
    status: Status
    """As it was when the row was read."""


class BatchTable:
    """Batches by id and owner. The id of another caller's batch does not exist for this one."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        folder: StateFolder,
        files: FileTable,
        lines: LineTable,
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._folder = folder
        self._files = files
        self._lines = lines
        self._clock = clock

    # What callers ask for.

    def create(self, request: BatchRequest, owner: str, owner_name: str | None) -> BatchObject:
        """Raises InvalidRequest: the input file is not one, or the caller has too many batches."""
        self._check_input(request.input_file_id, owner)
        (count,) = self._connection.execute(
            f"SELECT count(*) FROM batches WHERE owner = ? AND status IN ({_marks(UNFINISHED)})",
            (owner, *UNFINISHED),
        ).fetchone()
        if count >= LIMITS.unfinished_batches:
            raise InvalidRequest(
                f"{count} batches are not finished; the limit is {LIMITS.unfinished_batches}",
                code="batch_limit_exceeded",
            )
        batch_id, now = f"batch_{secrets.token_hex(12)}", int(self._clock())
        expiry = request.output_expires_after
        values = {
            "id": batch_id,
            "owner": owner,
            "owner_name": owner_name,
            "endpoint": request.endpoint,
            "input_file_id": request.input_file_id,
            "completion_window": request.completion_window,
            "status": "validating",
            "output_seconds": LIMITS.max_expiry_seconds if expiry is None else expiry.seconds,
            "metadata": None if request.metadata is None else json.dumps(request.metadata),
            "created_at": now,
            "expires_at": now + WINDOW_SECONDS,
        }
        with self._folder.quota.taking(ROW_BYTES):
            self._connection.execute(
                f"INSERT INTO batches ({', '.join(values)}) VALUES ({_marks(values)})",
                list(values.values()),
            )
        return self.get(batch_id, owner)

    def _check_input(self, file_id: str, owner: str) -> None:
        param = "input_file_id"
        try:
            purpose = self._files.get(file_id, owner)["purpose"]
        except NotFound:
            raise InvalidRequest(
                f"'{param}': no such file: {file_id}", param=param, code="file_not_found"
            ) from None
        if purpose != "batch":
            raise InvalidRequest(
                f"'{param}' must be a file of purpose batch, not {purpose}",
                param=param,
                code="invalid_value",
            )

    def get(self, batch_id: str, owner: str) -> BatchObject:
        """Raises NotFound."""
        return _batch(self._row(batch_id, owner))

    def list(self, owner: str, *, after: str | None, limit: int) -> tuple[list[BatchObject], bool]:
        """A page of batches, the newest first, and whether there are more.

        Raises:
            InvalidRequest: `after` is no batch of this caller.
        """
        query, values = "SELECT * FROM batches WHERE owner = ?", [owner]
        if after is not None:
            try:
                cursor = self._row(after, owner)
            except NotFound:
                raise InvalidRequest(f"'after': no such batch: {after}", param="after") from None
            query += " AND number < ?"
            values.append(cursor["number"])
        rows = self._connection.execute(
            f"{query} ORDER BY number DESC LIMIT ?", [*values, limit + 1]
        ).fetchall()
        return [_batch(row) for row in rows[:limit]], len(rows) > limit

    def cancel(self, batch_id: str, owner: str) -> BatchObject:
        """Raises NotFound, or InvalidRequest where it is too late."""
        row = self._row(batch_id, owner)
        if row["status"] in CANCELLABLE:
            self._enter(row["number"], "cancelling")
        elif row["status"] not in ("cancelling", "cancelled"):
            raise InvalidRequest(
                f"The batch is {row['status']} and cannot be cancelled",
                code="batch_not_cancellable",
            )
        return self.get(batch_id, owner)

    # What the runner does.

    def unfinished(self) -> Sequence[BatchRow]:
        """The oldest first."""
        names = ", ".join(field.name for field in fields(BatchRow))
        rows = self._connection.execute(
            f"SELECT {names} FROM batches WHERE status IN ({_marks(UNFINISHED)}) ORDER BY number",
            UNFINISHED,
        )
        return [BatchRow(**row) for row in rows]

    def status(self, number: int) -> Status:
        """Of a batch that is there."""
        row = self._connection.execute("SELECT status FROM batches WHERE number = ?", (number,))
        status: Status = row.fetchone()["status"]
        return status

    def begin_checking(self, number: int) -> None:
        """Forget the lines that were checked before."""
        with transaction(self._connection):
            count = self._lines.drop(number)
        self._folder.quota.add(-count)

    def begin(self, number: int, model: str | None) -> Status:
        """All lines are good: they may run, unless the batch was cancelled meanwhile."""
        with transaction(self._connection):
            if self.status(number) == "validating":
                self._connection.execute(
                    "UPDATE batches SET model = ?, total ="
                    " (SELECT count(*) FROM lines WHERE batch = ?) WHERE number = ?",
                    (model, number, number),
                )
                self._enter(number, "in_progress")
        return self.status(number)

    def fail(self, number: int, errors: Sequence[BatchError]) -> Status:
        """The input file is wrong; a batch that was cancelled meanwhile is that all the same."""
        with transaction(self._connection):
            count = self._lines.drop(number)
            self._connection.execute(
                "UPDATE batches SET errors = ? WHERE number = ?", (json.dumps(errors), number)
            )
            if self.status(number) == "validating":
                self._enter(number, "failed")
        self._folder.quota.add(-count)
        return self.status(number)

    def finalize(self, batch: BatchRow) -> Status:
        """Write the files and end the batch; how it ended. May be repeated after a crash.

        Lines that are not done go to the error file: the batch was cancelled, or has expired. Of a
        batch that was cancelled before it began, none do: perhaps not all were read.
        """
        number = batch.number
        if self.status(number) == "cancelling":
            status: Status = "cancelled"
            if self._has_begun(number):
                self._lines.give_up(number, "batch_cancelled")
        else:
            self._enter(number, "finalizing")
            status = "expired" if self._expires(number) else "completed"
            self._lines.give_up(number, "batch_expired")
        outputs: dict[str, NewFile | None] = {}
        try:
            for column, is_error in (("output_file_id", False), ("error_file_id", True)):
                outputs[column] = self._write(batch, is_error=is_error)
            with transaction(self._connection):
                for column, file in outputs.items():
                    if file is not None:
                        self._add_output(number, column, file)
                count = self._lines.drop(number)
                self._enter(number, status)
        except BaseException:
            for file in filter(None, outputs.values()):
                self._folder.blob(file.id).unlink(missing_ok=True)
            raise
        added = sum(ROW_BYTES + file.size for file in outputs.values() if file is not None)
        self._folder.quota.add(added - count)
        return status

    def _has_begun(self, number: int) -> bool:
        row = self._connection.execute(
            "SELECT in_progress_at FROM batches WHERE number = ?", (number,)
        )
        return row.fetchone()["in_progress_at"] is not None

    def _expires(self, number: int) -> bool:
        """Whether lines are not done; noted, as they will not stay so."""
        if self._lines.next(number, after=0, limit=1):
            self._connection.execute(
                "UPDATE batches SET expired_at = ? WHERE number = ?", (int(self._clock()), number)
            )
        row = self._connection.execute("SELECT expired_at FROM batches WHERE number = ?", (number,))
        return row.fetchone()["expired_at"] is not None

    def _write(self, batch: BatchRow, *, is_error: bool) -> NewFile | None:
        total = self._connection.execute(
            "SELECT completed, failed FROM batches WHERE number = ?", (batch.number,)
        ).fetchone()
        if not total["failed" if is_error else "completed"]:
            return None
        file_id = new_file_id()
        with new_blob(self._folder, file_id) as sink:
            self._lines.write(batch.number, sink, is_error=is_error)
            size = sink.tell()
        return NewFile(
            id=file_id,
            owner=batch.owner,
            purpose="batch_output",
            filename=f"{batch.id}_{'error' if is_error else 'output'}.jsonl",
            size=size,
            seconds=batch.output_seconds,
        )

    def _add_output(self, number: int, column: str, file: NewFile) -> None:
        self._files.insert(file)
        self._connection.execute(
            f"UPDATE batches SET {column} = ? WHERE number = ?", (file.id, number)
        )

    # Housekeeping.

    def purge(self) -> int:
        """Remove batches that were made longer ago than any file is kept; how many they were."""
        removed = self._connection.execute(
            f"DELETE FROM batches WHERE expires_at <= ? AND {_ENDED}",
            (int(self._clock()) - LIMITS.max_expiry_seconds,),
        ).rowcount
        self._folder.quota.add(-ROW_BYTES * removed)
        return removed

    def num_open_lines(self) -> int:
        """Lines without a result, of all batches that run."""
        (count,) = self._connection.execute(
            "SELECT coalesce(sum(total - completed - failed), 0) FROM batches"
            " WHERE status = 'in_progress'"
        ).fetchone()
        return int(count)

    def count_bytes(self) -> int:
        """What the batches, but for their lines, count toward the quota."""
        (count,) = self._connection.execute("SELECT count(*) FROM batches").fetchone()
        return int(count) * ROW_BYTES

    def _enter(self, number: int, status: Status) -> None:
        """The new status, and its time if it is new."""
        self._connection.execute(
            f"UPDATE batches SET status = ?, {status}_at = coalesce({status}_at, ?)"
            " WHERE number = ?",
            (status, int(self._clock()), number),
        )

    def _row(self, batch_id: str, owner: str) -> sqlite3.Row:
        row: sqlite3.Row | None = self._connection.execute(
            "SELECT * FROM batches WHERE id = ? AND owner = ?", (batch_id, owner)
        ).fetchone()
        if row is None:
            raise NotFound(f"No such batch: {batch_id}", param="batch_id", code="batch_not_found")
        return row


def _marks(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values)


def _batch(row: sqlite3.Row) -> BatchObject:
    errors = row["errors"]
    return {
        "id": row["id"],
        "object": "batch",
        "endpoint": row["endpoint"],
        "model": row["model"],
        "errors": None if errors is None else {"object": "list", "data": json.loads(errors)},
        "input_file_id": row["input_file_id"],
        "completion_window": row["completion_window"],
        "status": row["status"],
        "output_file_id": row["output_file_id"],
        "error_file_id": row["error_file_id"],
        **{name: row[name] for name in _TIMES},  # type: ignore[typeddict-item]
        "request_counts": {name: row[name] for name in ("total", "completed", "failed")},
        "usage": {
            "input_tokens": row["input_tokens"],
            "input_tokens_details": {"cached_tokens": row["cached_tokens"]},
            "output_tokens": row["output_tokens"],
            "output_tokens_details": {"reasoning_tokens": row["reasoning_tokens"]},
            "total_tokens": row["input_tokens"] + row["output_tokens"],
        },
        "metadata": None if row["metadata"] is None else json.loads(row["metadata"]),
    }

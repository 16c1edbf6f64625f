"""The files of the state folder: one row and one blob each."""

import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quire.server.batches.database import database_errors, transaction
from quire.server.batches.schema import UNFINISHED, FileObject, Purpose
from quire.server.batches.state_folder import StateFolder, publish
from quire.server.errors import InvalidRequest, NotFound, StorageFull

ROW_BYTES = 4096
"""What a row counts beside its bytes, so that empty files have a bound too."""

Order = Literal["asc", "desc"]

_IN_USE = f"SELECT input_file_id FROM batches WHERE status IN ({', '.join('?' * len(UNFINISHED))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file to be: what its row says. `seconds`: how long it is kept."""

    id: str
    owner: str
    purpose: Purpose
    filename: str
    size: int
    seconds: int


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


class FileTable:
    """Files by id and owner. The id of another caller's file does not exist for this one.

    A file that was deleted or has expired is gone for callers; its blob stays until no unfinished
    batch reads it.
    """

    def __init__(
        self, connection: sqlite3.Connection, folder: StateFolder, clock: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._folder = folder
        self._clock = clock

    def add(self, file: NewFile, part: Path) -> FileObject:
        """Keep an upload whose bytes are in `part`, which is on the disk. Its bytes are counted."""
        with self._folder.quota.taking(ROW_BYTES):
            try:
                with transaction(self._connection):
                    self.insert(file)
                    publish(self._folder, part, file.id)
            except BaseException:
                self._folder.blob(file.id).unlink(missing_ok=True)
                raise
        return self.get(file.id, file.owner)

    def insert(self, file: NewFile) -> None:
        """The row alone, in the caller's transaction."""
        now = int(self._clock())
        self._connection.execute(
            "INSERT INTO files (id, owner, purpose, filename, bytes, created_at, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (file.id, file.owner, file.purpose, file.filename, file.size, now, now + file.seconds),
        )

    def get(self, file_id: str, owner: str) -> FileObject:
        """Raises NotFound."""
        return _file(self._row(file_id, owner))

    def list(
        self, owner: str, *, after: str | None, limit: int, order: Order, purpose: str | None
    ) -> tuple[list[FileObject], bool]:
        """A page of files by age, and whether there are more.

        Raises:
            InvalidRequest: `after` is no file of this caller.
        """
        query = "SELECT * FROM files WHERE owner = ? AND NOT is_deleted AND expires_at > ?"
        values: list[object] = [owner, int(self._clock())]
        if purpose is not None:
            query += " AND purpose = ?"
            values.append(purpose)
        if after is not None:
            try:
                cursor = self._row(after, owner)
            except NotFound:
                raise InvalidRequest(f"'after': no such file: {after}", param="after") from None
            query += f" AND number {'>' if order == 'asc' else '<'} ?"
            values.append(cursor["number"])
        query += f" ORDER BY number {order.upper()} LIMIT ?"
        rows = self._connection.execute(query, [*values, limit + 1]).fetchall()
        return [_file(row) for row in rows[:limit]], len(rows) > limit

    def delete(self, file_id: str, owner: str) -> None:
        """Raises NotFound, or StorageFull: not even this can be noted, as a batch reads the file."""
        row = self._row(file_id, owner)
        try:
            self._mark(row["id"])
        except StorageFull:
            if self._is_in_use(row["id"]):
                raise
            # Its own bytes are the room that is wanted.
            self._folder.blob(row["id"]).unlink(missing_ok=True)
            self._mark(row["id"])
        self.purge()

    def _mark(self, file_id: str) -> None:
        with database_errors():
            self._connection.execute("UPDATE files SET is_deleted = 1 WHERE id = ?", (file_id,))

    def _is_in_use(self, file_id: str) -> bool:
        found = self._connection.execute(f"SELECT ? IN ({_IN_USE})", (file_id, *UNFINISHED))
        return bool(found.fetchone()[0])

    def purge(self) -> int:
        """Remove the files that are gone and that no unfinished batch reads; how many they were."""
        rows = self._connection.execute(
            "SELECT id, bytes FROM files WHERE (is_deleted OR expires_at <= ?)"
            f" AND id NOT IN ({_IN_USE})",
            (int(self._clock()), *UNFINISHED),
        ).fetchall()
        for row in rows:
            self._folder.blob(row["id"]).unlink(missing_ok=True)
            self._connection.execute("DELETE FROM files WHERE id = ?", (row["id"],))
            self._folder.quota.add(-ROW_BYTES - row["bytes"])
        return len(rows)

    def ids(self) -> set[str]:
        return {row["id"] for row in self._connection.execute("SELECT id FROM files")}

    def count_bytes(self) -> int:
        """What the files count toward the quota."""
        (count,) = self._connection.execute(
            "SELECT coalesce(sum(bytes + ?), 0) FROM files", (ROW_BYTES,)
        ).fetchone()
        return int(count)

    def _row(self, file_id: str, owner: str) -> sqlite3.Row:
        row: sqlite3.Row | None = self._connection.execute(
            "SELECT * FROM files WHERE id = ? AND owner = ? AND NOT is_deleted AND expires_at > ?",
            (file_id, owner, int(self._clock())),
        ).fetchone()
        if row is None:
            raise NotFound(f"No such file: {file_id}", param="file_id", code="file_not_found")
        return row


def _file(row: sqlite3.Row) -> FileObject:
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "status_details": None,
    }

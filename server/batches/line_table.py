"""The lines of unfinished batches: where each stands in the input file, and its result when done."""

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import IO

from quire.server.batches.database import transaction
from quire.server.batches.output_lines import WhyNot, unfinished_line
from quire.server.batches.state_folder import Quota

LINE_BYTES = 64
"""What a line counts toward the quota, beside its custom_id and its result."""

_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """A request of the input file. `number` is its line, from 1; `size` bytes stand at `offset`."""

    number: int
    custom_id: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a request took."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


NO_TOKENS = Tokens()


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """A line that is done: its text for the output file, or for the error file."""

    batch: int
    line: int
    text: bytes
    is_error: bool
    tokens: Tokens = NO_TOKENS


class LineTable:
    """Lines by batch and number. A line gets one result, once."""

    def __init__(self, connection: sqlite3.Connection, quota: Quota) -> None:
        self._connection = connection
        self._quota = quota

    def add(self, batch: int, lines: Sequence[Line]) -> None:
        """Raises StorageFull: none of them is kept."""
        size = sum(LINE_BYTES + len(line.custom_id.encode()) for line in lines)
        with self._quota.taking(size), transaction(self._connection):
            self._connection.executemany(
                "INSERT INTO lines (batch, line, custom_id, offset, size) VALUES (?, ?, ?, ?, ?)",
                [(batch, *astuple(line)) for line in lines],
            )

    def drop(self, batch: int) -> int:
        """Delete a batch's lines, in the caller's transaction; what they counted, which is for the
        caller to give back."""
        count = self.count_bytes(batch)
        self._connection.execute("DELETE FROM lines WHERE batch = ?", (batch,))
        return count

    def next(self, batch: int, *, after: int, limit: int) -> list[Line]:
        """Lines not done whose number is above `after`."""
        rows = self._connection.execute(
            "SELECT line, custom_id, offset, size FROM lines"
            " WHERE batch = ? AND line > ? AND result IS NULL ORDER BY line LIMIT ?",
            (batch, after, limit),
        )
        return [Line(*row) for row in rows]

    def save(self, results: Sequence[LineResult]) -> None:
        """Raises StorageFull: none of them is kept."""
        size = sum(len(result.text) for result in results)
        with self._quota.taking(size), transaction(self._connection):
            for result in results:
                self._save(result)

    def give_up(self, batch: int, code: WhyNot) -> None:
        """Give the lines that have no result one that says why, whatever the quota."""
        while lines := self.next(batch, after=0, limit=_AT_ONCE):
            texts = [unfinished_line(line.custom_id, code) for line in lines]
            with transaction(self._connection):
                for line, text in zip(lines, texts, strict=True):
                    self._save(LineResult(batch=batch, line=line.number, text=text, is_error=True))
            self._quota.add(sum(map(len, texts)))

    def write(self, batch: int, sink: IO[bytes], *, is_error: bool) -> None:
        """The results of one kind, in the order of the input."""
        rows = self._connection.execute(
            "SELECT result FROM lines WHERE batch = ? AND is_error = ? ORDER BY line",
            (batch, is_error),
        )
        for row in rows:
            sink.write(row["result"])

    def count_bytes(self, batch: int | None = None) -> int:
        """What the lines of one batch, or of all, count toward the quota."""
        where, values = ("", ()) if batch is None else ("WHERE batch = ?", (batch,))
        (count,) = self._connection.execute(
            # As bytes: SQLite ends the length of a text at its first NUL.
            "SELECT coalesce(sum("
            "? + length(CAST(custom_id AS BLOB)) + coalesce(length(result), 0)), 0)"
            f" FROM lines {where}",
            (LINE_BYTES, *values),
        ).fetchone()
        return int(count)

    def _save(self, result: LineResult) -> None:
        saved = self._connection.execute(
            "UPDATE lines SET result = ?, is_error = ?"
            " WHERE batch = ? AND line = ? AND result IS NULL",
            (result.text, result.is_error, result.batch, result.line),
        )
        if saved.rowcount != 1:
            raise ValueError(f"line {result.line} of batch {result.batch} is done or unknown")
        ended = "failed = failed" if result.is_error else "completed = completed"
        self._connection.execute(
            f"UPDATE batches SET {ended} + 1, input_tokens = input_tokens + ?,"
            " cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ?,"
            " reasoning_tokens = reasoning_tokens + ? WHERE number = ?",
            (*astuple(result.tokens), result.batch),
        )

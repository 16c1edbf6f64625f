"""The store against a model of it: whatever is done in whatever order, killed at whatever moment."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from quire.config.limits import LIMITS
from quire.server.batches.file_table import NewFile, new_file_id
from quire.server.batches.line_table import Line, LineResult, Tokens
from quire.server.batches.output_lines import response_line
from quire.server.batches.schema import UNFINISHED, BatchRequest
from quire.server.batches.state_folder import StateFolder
from quire.server.batches.store import Store
from quire.server.errors import InvalidRequest, NotFound, StorageFull

LIMIT = 300_000
DAY = 24 * 3600
owners = st.sampled_from(["ann", "bob"])
rarely = st.sampled_from([False, False, False, True])
which = st.integers(0, 9)
"""Of the batches that it may be, counted round and round."""


class StoreMachine(RuleBasedStateMachine):
    """Files and batches of two callers, some time, and crashes."""

    file_ids = Bundle("file_ids")
    batch_ids = Bundle("batch_ids")

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.now = 1_800_000_000.0
        self.files: dict[str, dict[str, Any]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.folder = StateFolder(self.path, LIMIT)
        self.store = Store(self.folder, lambda: self.now)

    def teardown(self) -> None:
        self.store.close()
        self.folder.close()
        shutil.rmtree(self.path)

    @rule(target=file_ids, owner=owners, size=st.integers(0, 60_000), days=st.integers(1, 30))
    def upload(self, owner: str, size: int, days: int) -> Any:
        file_id = new_file_id()
        part = self.folder.new_part()
        part.write_bytes(b"x" * size)
        file = NewFile(
            id=file_id, owner=owner, purpose="batch", filename="a", size=size, seconds=days * DAY
        )
        taken = self.folder.quota.taken
        try:
            self.folder.quota.take(size)
            try:
                self.store.files.add(file, part)
            except StorageFull:
                self.folder.quota.add(-size)
                raise
        except StorageFull:
            part.unlink()
            assert taken + size + 4096 > LIMIT and self.folder.quota.taken == taken
            return multiple()
        self.files[file_id] = {"owner": owner, "size": size, "until": int(self.now) + days * DAY}
        return file_id

    @rule(file_id=consumes(file_ids), owner=owners)
    def delete(self, file_id: str, owner: str) -> None:
        if self._is_there(file_id, owner):
            self.store.files.delete(file_id, owner)
            del self.files[file_id]
        else:
            with pytest.raises(NotFound):
                self.store.files.delete(file_id, owner)

    @rule(target=batch_ids, file_id=file_ids, stranger=rarely, count=st.integers(1, 6))
    def submit(self, file_id: str, stranger: bool, count: int) -> Any:
        owner = self.files[file_id]["owner"] if not stranger and file_id in self.files else "bob"
        request = BatchRequest(
            input_file_id=file_id, endpoint="/v1/completions", completion_window="24h"
        )
        try:
            batch = self.store.batches.create(request, owner, owner)
        except (InvalidRequest, StorageFull) as error:
            assert isinstance(error, StorageFull) or not self._is_there(file_id, owner)
            return multiple()
        assert self._is_there(file_id, owner)
        ids = [f"id-{number}" for number in range(count)]
        self.batches[batch["id"]] = {
            "owner": owner,
            "input": file_id,
            "lines": ids,
            "done": {},
            "status": "validating",
            "until": int(self.now) + DAY,
        }
        return batch["id"]

    @precondition(lambda self: self._those("validating"))
    @rule(number=which, is_bad=rarely)
    def check(self, number: int, is_bad: bool) -> None:
        batch, row = self._pick(number, "validating")
        self.store.batches.begin_checking(row.number)
        lines = [Line(n + 1, name, n * 10, 10) for n, name in enumerate(batch["lines"])]
        try:
            self.store.lines.add(row.number, lines)
        except StorageFull:
            is_bad = True
        if not is_bad:
            batch["status"] = self.store.batches.begin(row.number, "m")
            assert batch["status"] == "in_progress"
        else:
            error: Any = {"code": "c", "line": 1, "message": "m", "param": None}
            batch["status"] = self.store.batches.fail(row.number, [error])
            assert batch["status"] == "failed"

    @precondition(lambda self: self._those("in_progress"))
    @rule(number=which, count=st.integers(1, 4), size=st.integers(0, 9000), bad=st.booleans())
    def answer(self, number: int, count: int, size: int, bad: bool) -> None:
        batch, row = self._pick(number, "in_progress")
        lines = self.store.lines.next(row.number, after=0, limit=count)
        left = [name for name in batch["lines"] if name not in batch["done"]]
        assert [line.custom_id for line in lines] == left[:count]
        results = [
            LineResult(
                batch=row.number,
                line=line.number,
                text=response_line(
                    line.custom_id, status=200, request_id="r", body=json.dumps("y" * size).encode()
                ),
                is_error=bad,
                tokens=Tokens(1, 0, 2, 0),
            )
            for line in lines
        ]
        try:
            self.store.lines.save(results)
        except StorageFull:
            return
        for line in lines:
            batch["done"][line.custom_id] = "failed" if bad else "completed"

    @rule(batch_id=batch_ids, owner=owners)
    def cancel(self, batch_id: str, owner: str) -> None:
        batch = self.batches.get(batch_id)
        if batch is None or batch["owner"] != owner:
            with pytest.raises(NotFound):
                self.store.batches.cancel(batch_id, owner)
        elif batch["status"] in ("validating", "in_progress"):
            batch["status"] = self.store.batches.cancel(batch_id, owner)["status"]
            assert batch["status"] == "cancelling"
        elif batch["status"] in ("cancelling", "cancelled"):
            assert self.store.batches.cancel(batch_id, owner)["status"] == batch["status"]
        else:
            with pytest.raises(InvalidRequest, match="cannot be cancelled"):
                self.store.batches.cancel(batch_id, owner)

    @precondition(lambda self: self._those("in_progress", "cancelling"))
    @rule(number=which)
    def finalize(self, number: int) -> None:
        batch, row = self._pick(number, "in_progress", "cancelling")
        was_checked = batch["status"] == "in_progress" or self.store.lines.next(
            row.number, after=0, limit=1
        )
        left = [name for name in batch["lines"] if name not in batch["done"]]
        expected = "expired" if left else "completed"
        expected = "cancelled" if batch["status"] == "cancelling" else expected
        assert self.store.batches.finalize(row) == expected
        batch["status"] = expected
        if was_checked or batch["done"]:
            batch["done"] |= dict.fromkeys(left, "failed")
        self._check_outputs(row.id, batch)

    @rule(seconds=st.integers(0, 20 * DAY))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def purge(self) -> None:
        self.store.purge()
        limit = int(self.now) - LIMITS.max_expiry_seconds
        for batch_id, batch in list(self.batches.items()):
            if batch["status"] not in UNFINISHED and batch["until"] <= limit:
                del self.batches[batch_id]

    @precondition(lambda self: self.files or self.batches)
    @rule(leftover=st.booleans())
    def crash(self, leftover: bool) -> None:
        """Open the folder as the next daemon would; the old store says nothing any more."""
        if leftover:
            self.folder.new_part().write_bytes(b"half")
            self.folder.blob(new_file_id()).write_bytes(b"never committed")
        taken, old = self.folder.quota.taken, self.store
        self.folder.close()
        self.folder = StateFolder(self.path, LIMIT)
        self.store = Store(self.folder, lambda: self.now)
        old.close()
        assert self.folder.quota.taken == taken

    @invariant()
    def files_are_those_of_the_model(self) -> None:
        for owner in ("ann", "bob"):
            found, more = self.store.files.list(
                owner, after=None, limit=10_000, order="asc", purpose="batch"
            )
            assert not more
            there = [file_id for file_id in self.files if self._is_there(file_id, owner)]
            assert [file["id"] for file in found] == there

    @invariant()
    def batches_are_those_of_the_model(self) -> None:
        for owner in ("ann", "bob"):
            found, _ = self.store.batches.list(owner, after=None, limit=100)
            own = {
                batch_id: batch
                for batch_id, batch in self.batches.items()
                if batch["owner"] == owner
            }
            assert [batch["id"] for batch in found] == [*own][::-1]
            for batch in found:
                outcomes = list(own[batch["id"]]["done"].values())
                assert batch["status"] == own[batch["id"]]["status"]
                assert batch["request_counts"]["completed"] == outcomes.count("completed")
                assert batch["request_counts"]["failed"] == outcomes.count("failed")

    @invariant()
    def every_blob_has_its_row_and_every_byte_is_counted(self) -> None:
        blobs = {path.name for path in (self.path / "files").iterdir()}
        assert blobs == self.store.files.ids()
        counted = sum(
            table.count_bytes()
            for table in (self.store.files, self.store.lines, self.store.batches)
        )
        assert self.folder.quota.taken == counted

    @invariant()
    def an_unfinished_batch_has_its_input(self) -> None:
        for batch in self.batches.values():
            if batch["status"] in UNFINISHED:
                assert self.folder.blob(batch["input"]).is_file()

    def _is_there(self, file_id: str, owner: str) -> bool:
        file = self.files.get(file_id)
        return file is not None and file["owner"] == owner and file["until"] > int(self.now)

    def _those(self, *statuses: str) -> list[str]:
        return [name for name, batch in self.batches.items() if batch["status"] in statuses]

    def _pick(self, number: int, *statuses: str) -> tuple[dict[str, Any], Any]:
        ids = self._those(*statuses)
        batch_id = ids[number % len(ids)]
        (row,) = [row for row in self.store.batches.unfinished() if row.id == batch_id]
        assert row.status == self.batches[batch_id]["status"]
        return self.batches[batch_id], row

    def _check_outputs(self, batch_id: str, batch: dict[str, Any]) -> None:
        found = self.store.batches.get(batch_id, batch["owner"])
        for column, outcome in (("output_file_id", "completed"), ("error_file_id", "failed")):
            expected = [name for name in batch["lines"] if batch["done"].get(name) == outcome]
            file_id = found[column]  # type: ignore[literal-required]
            if file_id is None:
                assert expected == []
                continue
            text = self.folder.blob(file_id).read_text()
            assert [json.loads(line)["custom_id"] for line in text.splitlines()] == expected
            assert self.store.files.get(file_id, batch["owner"])["bytes"] == len(text)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)

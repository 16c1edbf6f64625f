"""Disks that are full, databases that are damaged, folders that are taken."""

import asyncio
import errno
import sqlite3
from pathlib import Path
from typing import Any

import openai
import pytest

from quire.config.errors import ConfigError
from quire.server.batches import state_folder
from quire.server.batches.database import VERSION, open_database
from quire.server.batches.state_folder import Quota, StateFolder, open_part
from quire.server.errors import StateUnavailable, StorageFull


async def test_a_full_folder_refuses_files_until_some_are_deleted(open_site: Any) -> None:
    site = await open_site(state_dir_size=1024**2)
    client = site.client()
    first = await client.files.create(file=("a", b"x" * 700_000), purpose="batch")

    with pytest.raises(openai.InternalServerError) as caught:
        await client.files.create(file=("b", b"x" * 700_000), purpose="batch")

    assert caught.value.status_code == 507 and caught.value.code == "storage_full"
    assert "state_dir_size" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"
    await client.files.delete(first.id)
    await client.files.create(file=("b", b"x" * 700_000), purpose="batch")


async def test_a_batch_waits_for_room_and_live_requests_do_not(
    open_site: Any, request_lines: Any, submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.server.batches.result_writer.RETRY_SECONDS", 0.05)
    site = await open_site(state_dir_size=1024**2)
    client = site.client()
    made = await submit(client, request_lines(30))
    rest = site.service.store.folder.quota
    filler = await client.files.create(
        file=("f", b"x" * (rest.limit - rest.taken - 4096 - 8000)), purpose="batch"
    )
    site.service.store.folder.quota.take(2000)

    await asyncio.sleep(0.3)
    reply = await client.completions.create(model="tiny", prompt="Hi", max_tokens=2)
    assert reply.choices[0].text
    stalled = await client.batches.retrieve(made.id)
    assert stalled.status == "in_progress" and stalled.request_counts.completed < 30

    await client.files.delete(filler.id)
    batch = await site.ended(client, made.id)
    assert batch.status == "completed" and batch.request_counts.completed == 30


async def test_an_input_that_does_not_fit_fails_its_batch(
    open_site: Any, request_lines: Any, submit: Any
) -> None:
    site = await open_site(state_dir_size=1024**2)
    client = site.client()
    lines = b"".join(
        b'{"custom_id":"%d","method":"POST","url":"/v1/completions","body":{}}\n' % number
        for number in range(9000)
    )

    made = await submit(client, lines, endpoint="/v1/completions")
    batch = await site.ended(client, made.id)

    assert [error.code for error in batch.errors.data] == ["storage_full"]


async def test_a_disk_that_is_full_is_told_as_that(
    site: Any, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    def refuse(sink: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    client = site.client()
    monkeypatch.setattr("quire.server.batches.upload.sync", refuse)
    with pytest.raises(openai.InternalServerError, match="disk of the state folder is full"):
        await client.files.create(file=("a", b"x"), purpose="batch")
    monkeypatch.undo()

    assert list((state_dir / "files").iterdir()) == []
    await client.files.create(file=("a", b"x"), purpose="batch")


async def test_a_disk_that_fills_up_under_an_upload(
    site: Any, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    client = site.client()
    await client.files.list()
    full = Path("/dev/full")
    monkeypatch.setattr("quire.server.batches.upload.open_part", lambda part: open_part(full))
    for size in (1, 3_000_000):
        with pytest.raises(openai.InternalServerError, match="disk of the state folder is full"):
            await client.files.create(file=("a", b"x" * size), purpose="batch")

    assert site.service.store.folder.quota.taken == 0


async def test_a_file_can_be_deleted_from_a_full_disk(
    site: Any, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    client = site.client()
    file = await client.files.create(file=("a", b"x"), purpose="batch")
    blob = state_dir / "files" / file.id

    class FullDisk:
        """Writes nothing before the file has made room."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if not statement.startswith("SELECT") and blob.exists():
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return self._connection.execute(statement, *values)

    def fill(store: Any) -> None:
        monkeypatch.setattr(store.files, "_connection", FullDisk(store.files._connection))

    await site.service.store.run(fill)

    assert (await client.files.delete(file.id)).deleted
    assert not blob.exists() and (await client.files.list()).data == []
    assert site.service.store.folder.quota.taken == 0


async def test_an_output_that_does_not_fit_is_written_when_it_does(
    open_site: Any, request_lines: Any, submit: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    site = await open_site()
    client = site.client()
    monkeypatch.setattr("quire.server.batches.runner.RETRY_SECONDS", 0.05)
    attempts = []

    def refuse_twice(folder: Any, part: Path, file_id: str) -> None:
        attempts.append(file_id)
        if len(attempts) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        publish(folder, part, file_id)

    publish = state_folder.publish
    file = await client.files.create(file=("a", request_lines(3)), purpose="batch")
    monkeypatch.setattr(state_folder, "publish", refuse_twice)
    made = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = await site.ended(client, made.id)

    assert batch.status == "completed" and len(attempts) == 3
    assert len([file async for file in client.files.list()]) == 2
    assert "batch waits" in caplog.text


async def test_a_damaged_database_takes_batches_away_and_nothing_else(
    open_site: Any, state_dir: Path, caplog: Any
) -> None:
    state_dir.mkdir()
    (state_dir / "quire.sqlite").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)
    site = await open_site()
    client = site.client()

    reply = await client.completions.create(model="tiny", prompt="Hi", max_tokens=2)
    assert reply.choices[0].text
    for attempt in (client.files.list(), client.batches.retrieve("batch_a")):
        with pytest.raises(openai.InternalServerError) as caught:
            await attempt
        assert (caught.value.status_code, caught.value.code) == (503, "state_unavailable")
    with pytest.raises(openai.InternalServerError, match="damaged"):
        await client.files.create(file=("a", b"x"), purpose="batch")
    assert "damaged" in caplog.text
    assert (state_dir / "quire.sqlite").read_bytes()[:15] == b"SQLite format 3", "left as it was"


async def test_a_database_that_breaks_while_it_is_used(
    site: Any, request_lines: Any, submit: Any, state_dir: Path
) -> None:
    client = site.client()
    batch = await submit(client, request_lines(3))
    await site.ended(client, batch.id)
    await site.service.store.run(
        lambda store: store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    )
    with (state_dir / "quire.sqlite").open("r+b") as database:
        database.seek(100)
        database.write(b"\xff" * 60_000)
    await site.service.store.run(
        lambda store: store._connection.execute("PRAGMA shrink_memory").fetchall()
    )

    with pytest.raises(openai.InternalServerError, match="damaged"):
        await submit(client, request_lines(2000))
    reply = await client.completions.create(model="tiny", prompt="Hi", max_tokens=2)
    assert reply.choices[0].text


async def test_a_disk_that_is_full_at_the_start_is_tried_again(
    open_site: Any, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    def refuse(connection: sqlite3.Connection) -> None:
        raise StorageFull("The disk of the state folder is full")

    monkeypatch.setattr("quire.server.batches.database._prepare", refuse)
    site = await open_site()
    client = site.client()
    with pytest.raises(openai.InternalServerError, match="disk of the state folder is full"):
        await client.files.list()
    monkeypatch.undo()

    assert (await client.files.list()).data == []


async def test_what_cannot_be_swept_is_counted_once(
    open_site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await open_site()
    await first.client().files.create(file=("a", b"x" * 1000), purpose="batch")
    taken = first.service.store.folder.quota.taken
    await first.close()

    def refuse(folder: StateFolder, known: set[str]) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(StateFolder, "sweep", refuse)
    site = await open_site()
    for _ in range(2):
        with pytest.raises(openai.InternalServerError, match="cannot be read or written"):
            await site.client().files.list()
    monkeypatch.undo()

    assert len((await site.client().files.list()).data) == 1
    assert site.service.store.folder.quota.taken == taken


async def test_every_character_of_a_custom_id_is_given_back(
    site: Any, request_lines: Any, submit: Any, read_lines: Any
) -> None:
    client, custom_id = site.client(), "a\0ü" + "b" * 400
    made = await submit(client, request_lines(**{custom_id: {}}))
    batch = await site.ended(client, made.id)

    assert list(await read_lines(client, batch.output_file_id)) == [custom_id]
    counted = await site.service.store.run(
        lambda store: sum(
            table.count_bytes() for table in (store.files, store.lines, store.batches)
        )
    )
    assert site.service.store.folder.quota.taken == counted


def test_a_newer_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "quire.sqlite"
    open_database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()

    with pytest.raises(StateUnavailable, match="of a newer Quire"):
        open_database(path)


def test_two_daemons_do_not_share_a_folder(tmp_path: Path) -> None:
    first = StateFolder(tmp_path / "state", 1000)

    with pytest.raises(ConfigError, match=r"state_dir: .* is in use by another daemon"):
        StateFolder(tmp_path / "state", 1000)

    first.close()
    StateFolder(tmp_path / "state", 1000).close()


def test_a_folder_that_cannot_be_made_is_a_wrong_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"state_dir: .*Not a directory"):
        StateFolder(tmp_path / "file" / "state", 1000)


def test_the_quota_takes_all_or_nothing() -> None:
    quota = Quota(10)
    quota.take(7)

    with pytest.raises(StorageFull, match=r"take 7 bytes, 4 more are needed, and the limit is 10"):
        quota.take(4)
    with pytest.raises(ValueError), quota.taking(3):
        raise ValueError

    assert quota.taken == 7

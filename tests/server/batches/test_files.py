"""Files through the official client, and uploads that no client would send."""

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import openai
import pytest

KEYS = "ann:key-a\nann:key-a2\nbob:key-b\n"


async def test_a_file_is_uploaded_listed_read_and_deleted(site: Any, state_dir: Path) -> None:
    client, data = site.client(), os.urandom(3 * 1024**2)
    expiry: Any = {"anchor": "created_at", "seconds": 3600}

    file = await client.files.create(
        file=("täst .jsonl", data), purpose="batch", expires_after=expiry
    )

    now = int(site.clock.now)
    assert (file.bytes, file.purpose, file.filename) == (len(data), "batch", "täst .jsonl")
    assert (file.created_at, file.expires_at, file.status) == (now, now + 3600, "processed")
    assert await client.files.retrieve(file.id) == file
    assert [item async for item in client.files.list()] == [file]
    assert (await client.files.content(file.id)).content == data
    deleted = await client.files.delete(file.id)
    assert deleted.deleted and deleted.id == file.id
    assert [item async for item in client.files.list()] == []
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such file"):
            await call(file.id)
    assert list((state_dir / "files").iterdir()) == []
    assert site.service.store.folder.quota.taken == 0


async def test_what_is_kept_is_for_its_owner_alone(site: Any, state_dir: Path) -> None:
    await site.client().files.create(file=("a", b"x"), purpose="batch")

    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in state_dir.rglob("*")}

    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert len(modes) >= 4
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items()), modes


async def test_the_list_is_paged_ordered_and_filtered(site: Any) -> None:
    client = site.client()
    ids = [(await client.files.create(file=("a", b"x"), purpose="batch")).id for _ in range(5)]

    assert [file.id async for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id async for file in client.files.list(limit=2, order="asc")] == ids
    assert [file.id async for file in client.files.list(purpose="batch_output")] == []
    page = await client.files.list(after=ids[3], limit=2)
    assert [file.id for file in page.data] == [ids[2], ids[1]] and page.has_more
    for wrong in ({"after": "file-none"}, {"limit": 0}, {"limit": 10_001}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.files.list(**wrong)
        assert caught.value.param == next(iter(wrong))


async def test_another_key_sees_nothing_and_a_rotated_one_everything(
    open_site: Any, request_lines: Any, submit: Any
) -> None:
    site = await open_site(keys=KEYS)
    ann, rotated, bob = (site.client(key) for key in ("key-a", "key-a2", "key-b"))
    batch = await submit(ann, request_lines(1))
    await site.ended(ann, batch.id)
    file_id = batch.input_file_id

    assert (await rotated.files.retrieve(file_id)).id == file_id
    assert (await rotated.batches.retrieve(batch.id)).id == batch.id
    assert (await bob.files.list()).data == [] and (await bob.batches.list()).data == []
    for attempt in (
        bob.files.retrieve(file_id),
        bob.files.content(file_id),
        bob.files.delete(file_id),
        bob.batches.retrieve(batch.id),
        bob.batches.cancel(batch.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await attempt
    with pytest.raises(openai.BadRequestError, match="no such file"):
        await bob.batches.create(
            input_file_id=file_id, endpoint="/v1/completions", completion_window="24h"
        )
    with pytest.raises(openai.AuthenticationError):
        await site.client("stranger").files.list()


async def test_expired_files_go_and_a_running_batch_keeps_its_input(
    open_site: Any, request_lines: Any, submit: Any, state_dir: Path
) -> None:
    site = await open_site()
    client = site.client()
    site.engine.room = 0
    batch = await submit(client, request_lines(3))
    await client.files.delete(batch.input_file_id)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(batch.input_file_id)
    assert len(list((state_dir / "files").iterdir())) == 1

    site.engine.room = 1000
    done = await site.ended(client, batch.id)
    site.clock.now += 29 * 24 * 3600
    await site.service.store.run(lambda store: store.purge())
    assert (await client.files.retrieve(done.output_file_id)).id == done.output_file_id
    site.clock.now += 2 * 24 * 3600
    await site.service.store.run(lambda store: store.purge())

    assert list((state_dir / "files").iterdir()) == []
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve(batch.id)
    assert site.service.store.folder.quota.taken == 0


def form(*parts: tuple[str, bytes]) -> dict[str, Any]:
    """A multipart body of parts: what follows `form-data; `, and the content."""
    body = b"".join(
        f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    return {"content": body + b"--b--\r\n", "headers": headers}


PURPOSE = ('name="purpose"', b"batch")
FILE = ('name="file"; filename="a.jsonl"', b"x")


async def test_forms_that_are_wrong_are_refused_and_leave_nothing(
    site: Any, state_dir: Path
) -> None:
    http = site.http()
    cases: list[tuple[dict[str, Any], int, str | None]] = [
        (form(PURPOSE), 400, "file"),
        (form(FILE), 400, "purpose"),
        (form(('name="purpose"', b"vision"), FILE), 400, "purpose"),
        (form(PURPOSE, FILE, FILE), 400, "file"),
        (form(PURPOSE, ('name="file"', b"text")), 400, "file"),
        (form(PURPOSE, FILE, ('name="expires_after"', b"1")), 400, "expires_after"),
        (form(PURPOSE, FILE, ('name="expires_after[anchor]"', b"x")), 400, "expires_after"),
        (form(('name="purpose"', b"x"), PURPOSE, FILE), 400, "purpose"),
        (form(PURPOSE, FILE, ('name="purpose[x]"', b"1")), 400, "purpose"),
        (form(('name="a[b]"', b"1"), ('name="a"', b"1"), PURPOSE, FILE), 400, "a"),
        (form(PURPOSE, FILE, ('name="x"', b"y" * 2000)), 400, "x"),
        (form(*[(f'name="f{index}"', b"") for index in range(20)]), 400, None),
        ({"content": b"--b\r\n", "headers": form()["headers"]}, 400, None),
        ({"content": b"junk", "headers": form()["headers"]}, 400, None),
        ({"content": form(PURPOSE, FILE)["content"][:-8], "headers": form()["headers"]}, 400, None),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400, None),
        ({"json": {"purpose": "batch"}}, 415, None),
        (
            {**form(PURPOSE), "headers": {**form()["headers"], "content-encoding": "gzip"}},
            415,
            None,
        ),
    ]

    for request, status, param in cases:
        reply = await http.post("/v1/files", **request)
        assert reply.status_code == status, (request, reply.text)
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert (error["param"] or "").split(".")[0] == (param or ""), (request, error)

    good = await http.post("/v1/files", **form(PURPOSE, FILE, ('name="odd"', b"1")))
    assert good.status_code == 200 and "odd" in good.headers["x-quire-warning"]
    assert len(list((state_dir / "files").iterdir())) == 1


async def test_a_clients_path_is_not_a_path_of_ours(site: Any, state_dir: Path) -> None:
    name = 'name="file"; filename="../../quire\x07.sqlite"'

    reply = await site.http().post("/v1/files", **form(PURPOSE, (name, b"x")))

    assert reply.json()["filename"] == "quire.sqlite"
    (blob,) = (state_dir / "files").iterdir()
    assert blob.name == reply.json()["id"]
    long = form(PURPOSE, (f'name="file"; filename="{"a" * 300}"', b"x"))
    assert (await site.http().post("/v1/files", **long)).json()["filename"] == "a" * 255
    folder = form(PURPOSE, ('name="file"; filename="a/.."', b"x"))
    assert (await site.http().post("/v1/files", **folder)).json()["filename"] == "upload"


async def test_a_file_that_is_too_large_is_refused_with_and_without_its_length(
    open_site: Any, state_dir: Path
) -> None:
    site = await open_site(max_file_size=1024**2)
    request = form(PURPOSE, (FILE[0], b"x" * (4 * 1024**2)))

    async def pieces() -> Any:
        for start in range(0, len(request["content"]), 65536):
            yield request["content"][start : start + 65536]

    with_length = await site.http().post("/v1/files", **request)
    without = await site.http().post("/v1/files", content=pieces(), headers=request["headers"])

    for reply in (with_length, without):
        assert reply.status_code == 413
        assert "max_file_size" in reply.json()["error"]["message"]
    assert list((state_dir / "files").iterdir()) == []
    assert site.service.store.folder.quota.taken == 0


async def test_an_upload_that_stalls_or_breaks_off_leaves_nothing(
    open_site: Any, state_dir: Path
) -> None:
    site = await open_site(body_timeout=0.3)
    await site.http().get("/v1/files")
    port = int(site.url.rpartition(":")[2])
    head = b"POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 4000000\r\n"
    head += b"content-type: multipart/form-data; boundary=b\r\n\r\n"
    start = form(PURPOSE, (FILE[0], b"x" * 1_500_000))["content"][:-20]

    async def send(*, breaks_off: bool) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + (start if breaks_off else b"--b\r\n"))
        await writer.drain()
        if breaks_off:
            await asyncio.sleep(0.1)
            writer.close()
            return b""
        reply = await reader.read(65536)
        writer.close()
        return reply

    assert b" 408 " in await send(breaks_off=False)
    await send(breaks_off=True)

    for _ in range(100):
        if list((state_dir / "files").iterdir()) == []:
            break
        await asyncio.sleep(0.02)
    assert list((state_dir / "files").iterdir()) == []
    assert site.service.store.folder.quota.taken == 0


async def test_a_slow_upload_that_goes_on_may_take_longer_than_a_body(open_site: Any) -> None:
    site = await open_site(body_timeout=0.4)
    request = form(PURPOSE, (FILE[0], b"x" * 100_000))

    async def pieces() -> Any:
        for start in range(0, len(request["content"]), 10_000):
            yield request["content"][start : start + 10_000]
            await asyncio.sleep(0.1)

    reply = await site.http().post("/v1/files", content=pieces(), headers=request["headers"])

    assert reply.status_code == 200, reply.text


async def test_a_part_of_a_file_can_be_asked_for(site: Any) -> None:
    file = await site.client().files.create(file=("a", b"0123456789"), purpose="batch")

    reply = await site.http().get(f"/v1/files/{file.id}/content", headers={"range": "bytes=2-4"})

    assert (reply.status_code, reply.content) == (206, b"234")
    assert json.loads((await site.http().get(f"/v1/files/{file.id}")).text)["bytes"] == 10

"""Batches through the official client, from the file that goes in to the files that come out."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from scripted_server import FakeEngine

from quire.config.limits import LIMITS
from quire.pipelines.embedding_config import EmbeddingConfig
from quire.server.errors import EngineUnavailable, GenerationFailed, Overloaded


async def test_two_hundred_lines_good_and_bad(
    site: Any, request_lines: Any, submit: Any, read_lines: Any
) -> None:
    client = site.client()
    bad = {
        "unknown-model": {"model": "huge"},
        "hot": {"temperature": 7},
        "streamed": {"stream": True},
        "first": {"priority": -5},
        "no-messages": {"messages": []},
    }
    lines = request_lines(195, **bad)

    made = await submit(client, lines, metadata={"team": "a"})
    batch = await site.ended(client, made.id)

    assert made.status == "validating" and made.metadata == {"team": "a"}
    assert batch.status == "completed" and batch.model == "tiny"
    assert batch.request_counts.to_dict() == {"total": 200, "completed": 195, "failed": 5}
    good = await read_lines(client, batch.output_file_id)
    failed = await read_lines(client, batch.error_file_id)
    assert list(good) == [f"request-{index}" for index in range(195)]
    assert set(failed) == set(bad)
    for row in good.values():
        assert set(row) == {"id", "custom_id", "response", "error"} and row["error"] is None
        assert row["id"].startswith("batch_req_") and row["response"]["request_id"]
        assert row["response"]["status_code"] == 200
        body = row["response"]["body"]
        assert body["choices"][0]["message"]["content"] == "Hello world"
    codes = {name: row["response"]["body"]["error"]["param"] for name, row in failed.items()}
    assert codes == {
        "unknown-model": "model",
        "hot": "temperature",
        "streamed": "stream",
        "first": "priority",
        "no-messages": "messages",
    }
    assert failed["unknown-model"]["response"]["status_code"] == 404
    assert failed["streamed"]["response"]["status_code"] == 400
    usages = [row["response"]["body"]["usage"] for row in good.values()]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
    assert site.service.store.folder.quota.taken < 1024**2


async def test_times_and_files_of_a_batch(site: Any, request_lines: Any, submit: Any) -> None:
    client = site.client()
    expiry: Any = {"anchor": "created_at", "seconds": 7200}

    made = await submit(client, request_lines(2), output_expires_after=expiry)
    batch = await site.ended(client, made.id)

    now = int(site.clock.now)
    assert batch.expires_at == now + 24 * 3600 and batch.created_at == now
    for time in (batch.in_progress_at, batch.finalizing_at, batch.completed_at):
        assert time == now
    assert batch.failed_at is batch.expired_at is batch.cancelled_at is None
    assert batch.error_file_id is None and batch.output_file_id is not None
    output = await client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output" and output.expires_at == now + 7200
    assert output.filename == f"{batch.id}_output.jsonl"
    with pytest.raises(openai.BadRequestError, match="completed and cannot be cancelled"):
        await client.batches.cancel(batch.id)


async def test_the_other_endpoints(site: Any, submit: Any, read_lines: Any) -> None:
    client = site.client()

    async def answer(url: str, **body: Any) -> Any:
        line = {"custom_id": "a", "method": "POST", "url": url, "body": body}
        made = await submit(client, json.dumps(line).encode(), endpoint=url)
        batch = await site.ended(client, made.id)
        rows = await read_lines(client, batch.output_file_id or batch.error_file_id)
        return rows["a"]["response"], batch

    text, _ = await answer("/v1/completions", prompt="Hi")
    assert text["body"]["choices"][0]["text"] == "Hello world"
    made, batch = await answer("/v1/responses", input="Hi")
    assert made["body"]["output"][0]["content"][0]["text"] == "Hello world"
    assert batch.usage.output_tokens == made["body"]["usage"]["output_tokens"] > 0
    assert batch.usage.input_tokens == made["body"]["usage"]["input_tokens"] > 0
    assert (await client.responses.retrieve(made["body"]["id"])).output_text == "Hello world"
    refused, _ = await answer("/v1/embeddings", input="Hi")
    assert refused["body"]["error"]["code"] == "wrong_task"
    served = site.app.state.served
    config = EmbeddingConfig(pooling="mean", normalize=False)
    site.app.state.served = dataclasses.replace(served, embedding=config, hidden_size=8)
    vectors, batch = await answer("/v1/embeddings", input=["Hi", "Ho"])
    assert len(vectors["body"]["data"]) == 2
    assert batch.usage.input_tokens == vectors["body"]["usage"]["prompt_tokens"]


WRONG_LINES: list[tuple[bytes, str, str | None]] = [
    (b"{", "invalid_json_line", None),
    (b"[]", "invalid_json_line", None),
    (b'{"custom_id":"\\ud800","method":"POST"}', "invalid_json_line", None),
    (b'{"method":"POST"}', "missing_required_parameter", "custom_id"),
    (b'{"custom_id":"x","method":"POST","url":"u"}', "missing_required_parameter", "body"),
    (b'{"custom_id":7,"method":"POST","url":"u","body":{}}', "invalid_value", "custom_id"),
    (
        b'{"custom_id":"%s","method":"POST","url":"u","body":{}}' % (b"x" * 513),
        "invalid_value",
        "custom_id",
    ),
    (b'{"custom_id":"x","method":"GET","url":"u","body":{}}', "invalid_method", "method"),
    (b'{"custom_id":"x","method":"POST","url":"u","body":{}}', "mismatched_url", "url"),
    (b'{"custom_id":"x","method":"POST","url":"u","body":[]}', "invalid_value", "body"),
    (b'{"custom_id":"x","method":"POST","url":"u","body":{},"k":1}', "unknown_parameter", "k"),
]


async def test_wrong_lines_fail_the_batch_before_any_runs(
    site: Any, request_lines: Any, submit: Any
) -> None:
    client = site.client()
    wrong = b"\n".join(line for line, _, _ in WRONG_LINES)

    made = await submit(client, request_lines(2) + b"\n" + wrong + b"\n" + request_lines(1))
    batch = await site.ended(client, made.id)

    assert batch.status == "failed" and batch.failed_at is not None
    told = [(error.line, error.code, error.param) for error in batch.errors.data]
    expected = [(4 + at, code, param) for at, (_, code, param) in enumerate(WRONG_LINES)]
    assert told == [*expected, (4 + len(WRONG_LINES), "duplicate_custom_id", "custom_id")]
    assert batch.output_file_id is batch.error_file_id is None
    assert site.engine.streams == []


async def test_the_input_file_has_bounds(
    open_site: Any, request_lines: Any, submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(LIMITS, batch_lines=5)
    monkeypatch.setattr("quire.server.batches.input_file.LIMITS", few)
    site = await open_site(max_request_bytes=1024)
    client = site.client()

    async def codes(lines: bytes) -> list[str]:
        batch = await site.ended(client, (await submit(client, lines)).id)
        return [error.code for error in batch.errors.data]

    assert await codes(request_lines(a={"user": "x" * 2000})) == ["line_too_long"]
    assert await codes(request_lines(6)) == ["too_many_requests"]
    assert await codes(b"{\n" * 5 + request_lines(1)) == ["invalid_json_line"] * 5 + [
        "too_many_requests"
    ]
    assert await codes(b"\n \n") == ["empty_file"]


async def test_a_wrong_field_of_a_batch_is_named(site: Any, request_lines: Any) -> None:
    client = site.client()
    file = await client.files.create(file=("a", request_lines(1)), purpose="batch")
    good: Any = {
        "input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"
    }  # fmt: skip
    wrong: list[dict[str, Any]] = [
        {"endpoint": "/v1/moderations"},
        {"completion_window": "1h"},
        {"input_file_id": "file-none"},
        {"input_file_id": "../quire.sqlite"},
        {"metadata": {"k" * 65: "v"}},
        {"metadata": {"k": "v" * 513}},
        {"metadata": {str(index): "v" for index in range(17)}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
    ]

    for change in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.batches.create(**{**good, **change})
        assert (caught.value.param or "").split(".")[0] == next(iter(change)), caught.value


async def test_a_caller_has_so_many_unfinished_batches(
    site: Any, request_lines: Any, submit: Any
) -> None:
    client = site.client()
    site.engine.room = 0
    made = await submit(client, request_lines(1))

    async def create() -> Any:
        return await client.batches.create(
            input_file_id=made.input_file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )

    for _ in range(LIMITS.unfinished_batches - 1):
        await create()
    with pytest.raises(openai.BadRequestError, match="100 batches are not finished") as caught:
        await create()
    assert caught.value.code == "batch_limit_exceeded"
    await client.batches.cancel(made.id)
    await site.ended(client, made.id)
    await create()


async def test_the_list_of_batches_is_paged_and_the_newest_comes_first(
    site: Any, request_lines: Any, submit: Any
) -> None:
    client = site.client()
    ids = [(await submit(client, request_lines(1))).id for _ in range(5)]

    listed = [batch.id async for batch in client.batches.list(limit=2)]

    assert listed == ids[::-1]
    page = await client.batches.list(limit=5)
    assert page.has_more is False
    with pytest.raises(openai.BadRequestError, match="after"):
        await client.batches.list(after="batch_none")


async def test_a_batch_whose_input_is_gone_from_the_disk_fails(
    open_site: Any, request_lines: Any, state_dir: Path
) -> None:
    site = await open_site()
    client = site.client()
    file = await client.files.create(file=("a", request_lines(3)), purpose="batch")
    (state_dir / "files" / file.id).unlink()

    made = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = await site.ended(client, made.id)

    assert batch.status == "failed"
    assert [error.code for error in batch.errors.data] == ["file_not_found"]


async def test_what_is_not_the_lines_fault_is_asked_again(
    open_site: Any, request_lines: Any, submit: Any, tokenizer: Any
) -> None:
    refusals = [Overloaded("full", 1.0), EngineUnavailable("restarting", 1.0)] * 2
    site = await open_site(engine=_Refusing(tokenizer, list(refusals)))
    client = site.client()

    batch = await site.ended(client, (await submit(client, request_lines(3))).id)

    assert batch.status == "completed" and batch.request_counts.completed == 3


async def test_a_line_that_fails_in_the_engine_is_told_as_failed(
    open_site: Any, request_lines: Any, submit: Any, read_lines: Any, tokenizer: Any
) -> None:
    site = await open_site(engine=_Refusing(tokenizer, [GenerationFailed("bad")]))
    client = site.client()

    batch = await site.ended(client, (await submit(client, request_lines(3))).id)

    assert batch.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    (row,) = (await read_lines(client, batch.error_file_id)).values()
    assert row["response"]["status_code"] == 500
    assert row["response"]["body"]["error"]["code"] == "generation_failed"


async def test_a_bug_is_a_lines_error_after_some_attempts(
    open_site: Any, request_lines: Any, submit: Any, read_lines: Any, tokenizer: Any, caplog: Any
) -> None:
    site = await open_site(engine=_Refusing(tokenizer, [RuntimeError("secret")] * 4))
    client = site.client()

    batch = await site.ended(client, (await submit(client, request_lines(1))).id)

    (row,) = (await read_lines(client, batch.error_file_id)).values()
    assert row["response"]["status_code"] == 500 and "secret" not in str(row)
    assert row["response"]["body"]["error"]["code"] == "internal_error"
    assert len(site.engine.errors) == 1, "three attempts"
    assert "secret" in caplog.text


async def test_a_job_that_stops_on_a_bug_is_taken_up_again(
    site: Any, request_lines: Any, submit: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("quire.server.batches.runner.RETRY_SECONDS", 0.05)
    monkeypatch.setattr("quire.server.batches.job.response_line", lambda *args, **named: 1 / 0)
    client = site.client()
    made = await submit(client, request_lines(2))
    while "ZeroDivisionError" not in caplog.text:
        await asyncio.sleep(0.01)
    monkeypatch.undo()

    await asyncio.sleep(0.1)
    await site.service.runner.look()

    assert (await site.ended(client, made.id)).request_counts.completed == 2


async def test_without_a_folder_the_routes_say_how_to_get_one(make_daemon: Any, serve: Any) -> None:
    server = serve(make_daemon().app)

    for method, path in (("GET", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/v1/batches/b")):
        reply = await asyncio.to_thread(server.request, method, path)
        assert reply.status == 404
        assert "--state-dir" in reply.json["error"]["message"]
        assert reply.json["error"]["code"] == "not_enabled"


class _Refusing(FakeEngine):
    """Raises these at the first submissions."""

    def __init__(self, tokenizer: Any, errors: list[Any]) -> None:
        says = [*tokenizer.encode("Hi", add_special_tokens=False), tokenizer.eos_token_id]
        super().__init__(script=lambda context: says)
        self.errors = errors

    def submit(self, contexts: Any, origin: Any) -> Any:
        if self.errors:
            raise self.errors.pop()
        return super().submit(contexts, origin)

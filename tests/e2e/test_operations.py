"""One daemon with keys, small limits and an admin port: deadlines, shares, reloads, the drain."""

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest

ASK = {"model": "quire-demo", "prompt": "One cold day", "stream": True}
KEYS = "ann:ann-key\nbob:bob-key\n"
LONG = {"max_tokens": 60, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(KEYS)
    return path


@pytest.fixture(scope="module")
def server(launch: Callable[..., Any], key_file: Any) -> Any:
    """One context runs at a time, so that the next one waits for as long as it takes."""
    server = launch(
        *("--max-batch-size", "1", "--max-queue-size", "3", "--max-concurrency-per-key", "2"),
        *("--api-key-file", str(key_file), "--admin-port", "0"),
    )
    server.http.headers["x-api-key"] = "ann-key"
    server.wait_ready()
    return server


@pytest.fixture(scope="module")
def admin(server: Any) -> Any:
    url = re.search(r"admin on (http://127\.0\.0\.1:\d+)", server.log)
    assert url is not None, server.log
    with httpx2.Client(base_url=url[1], headers={"x-api-key": "bob-key"}, timeout=20.0) as client:
        yield client


@pytest.fixture
async def people(server: Any) -> AsyncIterator[dict[str, openai.AsyncOpenAI]]:
    made = {
        name: openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=f"{name}-key", max_retries=0)
        for name in ("ann", "bob")
    }
    yield made
    for client in made.values():
        await client.close()


@contextlib.contextmanager
def held(server: Any) -> Iterator[None]:
    """The worker does nothing meanwhile, so that what runs or waits goes on doing so."""
    worker = server.worker()
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def finish(stream: Any) -> str | None:
    return [chunk async for chunk in stream][-1].choices[0].finish_reason


async def test_a_deadline_ends_a_stream_with_an_error_and_frees_its_pages(
    server: Any, admin: Any, people: Any
) -> None:
    headers = {"x-request-timeout": "2.0", "x-request-id": "late-one"}
    before = server.metric("quire_deadlines_exceeded_total")
    stream = await people["ann"].completions.create(
        **ASK,
        max_tokens=440,
        extra_headers=headers,
        extra_body={"ignore_eos": True, "timeout": 60.0},
    )

    with held(server), pytest.raises(openai.APIError, match=r"limit of 2 s") as caught:
        await finish(stream)

    assert caught.value.code == "deadline_exceeded"
    await asyncio.to_thread(server.wait_idle)
    assert server.metric("quire_deadlines_exceeded_total") == before + 1
    shown = admin.get("/v1/requests/late-one").json()
    (choice,) = shown["choices"]
    assert (shown["api_key"], shown["timeout"]) == ("ann", 2.0)
    assert (choice["state"], choice["error"]) == ("abort", "deadline_exceeded")
    assert choice["generated_tokens"] > 0 and choice["worker_epoch"] == 1
    assert 2.0 <= choice["ended_after"] < 20.0
    assert "cold" not in str(shown)


async def test_a_deadline_also_passes_in_the_queue(server: Any, people: Any) -> None:
    running = await people["bob"].completions.create(**ASK, **LONG)
    first = await anext(aiter(running))

    with held(server), pytest.raises(openai.InternalServerError) as caught:
        await people["ann"].completions.create(
            model="quire-demo", prompt="x", max_tokens=2, extra_body={"timeout": 0.1}
        )

    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert first.choices[0].finish_reason is None
    assert await finish(running) == "length"


async def test_one_key_cannot_take_what_belongs_to_another(
    server: Any, admin: Any, people: Any
) -> None:
    ann, bob = people["ann"].completions, people["bob"].completions

    def live() -> list[str]:
        known = admin.get("/v1/requests").json()["data"]
        return [one["api_key"] for one in known if one["choices"][0]["ended_after"] is None]

    streams = [await ann.create(**ASK, **LONG)]
    with held(server):
        waiting = [asyncio.create_task(ann.create(**ASK, **LONG))]
        await until(lambda: live() == ["ann"] * 2)
        with pytest.raises(openai.RateLimitError) as caught:
            await ann.create(**ASK, max_tokens=1)
        waiting.append(asyncio.create_task(bob.create(**ASK, max_tokens=1)))
        await until(lambda: live() == ["ann", "ann", "bob"])

    assert caught.value.code == "key_concurrency_limit"
    assert int(caught.value.response.headers["retry-after-ms"]) >= 100
    streams += [await stream for stream in waiting]
    assert [await finish(stream) for stream in streams] == ["length"] * 3


async def test_a_reload_of_the_keys_drops_no_stream(
    server: Any, people: Any, key_file: Any
) -> None:
    stream = await people["bob"].completions.create(**ASK, **LONG)
    await anext(aiter(stream))
    key_file.write_text("ann:ann-key\n")

    server.process.send_signal(signal.SIGHUP)
    await until(lambda: "API keys reloaded" in server.log)

    with pytest.raises(openai.AuthenticationError):
        await people["bob"].models.list()
    assert await finish(stream) == "length"
    key_file.write_text(KEYS)
    server.process.send_signal(signal.SIGHUP)
    await until(lambda: server.log.count("API keys reloaded") == 2)
    assert "api_key=bob" in server.log and "bob-key" not in server.log


def test_the_prefix_cache_is_forgotten_on_demand(server: Any, admin: Any) -> None:
    body = {"prompt": "A little fox lived near the river. " * 12, "max_tokens": 1}

    def cached() -> int:
        usage = server.http.post("/v1/completions", json=body).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert (cached(), cached() > 0) == (0, True)
    assert admin.post("/reset_prefix_cache").status_code == 200
    assert cached() == 0


async def test_a_drain_is_red_and_gentle(server: Any, admin: Any, people: Any) -> None:
    assert server.http.post("/drain").status_code == 404
    stream = await people["ann"].completions.create(**ASK, **LONG)
    await anext(aiter(stream))

    drained = admin.post("/drain")

    assert drained.json() == {"status": "draining", "live_streams": 1}
    assert server.http.get("/readyz").status_code == 503
    assert server.http.get("/livez").status_code == 200
    with pytest.raises(openai.InternalServerError) as refused:
        await people["bob"].completions.create(**ASK)
    assert refused.value.status_code == 503
    assert await finish(stream) == "length"
    assert await asyncio.to_thread(server.stop) == 0

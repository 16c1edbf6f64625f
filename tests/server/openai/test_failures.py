"""Engine errors, disconnects and readers that stop reading."""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import orjson
import pytest

from quire.server.engine import Origin
from quire.server.errors import EngineUnavailable, GenerationFailed, Overloaded
from quire.server.openai.admission import build_contexts
from quire.server.openai.generation import Generation
from quire.server.openai.schema import CompletionRequest

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
ENDPOINTS = {"completions": {"prompt": "Hello"}, "chat/completions": CHAT}


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("is_stream", [False, True])
def test_overload_is_an_http_error_before_any_event(
    live: Any, http: httpx2.Client, endpoint: str, is_stream: bool
) -> None:
    live.engine.refusal = Overloaded("The queue is full (256 requests)", 1.5)

    reply = http.post(f"/v1/{endpoint}", json={**ENDPOINTS[endpoint], "stream": is_stream})

    assert reply.status_code == 429
    assert reply.headers["retry-after-ms"] == "1500"
    assert reply.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("path", ["models", "models/tiny"])
def test_models_wait_for_the_engine(live: Any, http: httpx2.Client, path: str) -> None:
    live.engine.is_unavailable = EngineUnavailable("The model is not ready: starting", 1.0)

    assert http.get(f"/v1/{path}").status_code == 503


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_unavailable_engine_is_told_before_the_body_is_judged(
    live: Any, http: httpx2.Client, endpoint: str
) -> None:
    live.engine.is_unavailable = EngineUnavailable("The model is not ready: starting", 1.0)

    reply = http.post(f"/v1/{endpoint}", json={"nonsense": 1})

    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("is_stream", [False, True])
def test_failure_before_the_first_token_is_an_http_error(
    live: Any, http: httpx2.Client, endpoint: str, is_stream: bool
) -> None:
    live.engine.fails_after, live.engine.failure = 0, GenerationFailed("It failed")

    body = {**ENDPOINTS[endpoint], "stream": is_stream, "n": 3}
    reply = http.post(f"/v1/{endpoint}", json=body)

    assert reply.status_code == 500
    assert reply.headers["x-should-retry"] == "false"
    assert reply.json()["error"]["code"] == "generation_failed"
    assert all(stream.is_closed for stream in live.engine.streams)


@pytest.mark.parametrize("how", ["raised", "status", "bug"])
def test_failure_in_a_stream_is_an_event_and_then_the_end(
    live: Any, http: httpx2.Client, how: str
) -> None:
    if how == "status":
        live.engine.ends_failed = True
    else:
        live.engine.fails_after = 2
        live.engine.failure = GenerationFailed("It failed") if how == "raised" else KeyError("x")

    reply = http.post("/v1/chat/completions", json={**CHAT, "stream": True, "n": 2})

    lines = reply.text.strip().split("\n\n")
    assert reply.status_code == 200
    assert lines[-1] == "data: [DONE]"
    error = orjson.loads(lines[-2].removeprefix("data: "))["error"]
    assert error["type"] == "api_error"
    assert error["code"] == ("internal_error" if how == "bug" else "generation_failed")
    assert "KeyError" not in reply.text
    assert all(stream.is_closed for stream in live.engine.streams)


def test_failure_after_some_tokens_of_a_whole_reply_is_an_http_error(
    live: Any, http: httpx2.Client
) -> None:
    live.engine.fails_after, live.engine.failure = 2, EngineUnavailable("It went away", 2.0)

    reply = http.post("/v1/completions", json={"prompt": "a"})

    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "2"


def test_sdk_raises_on_an_error_in_a_stream(live: Any, sdk: openai.OpenAI) -> None:
    live.engine.fails_after, live.engine.failure = 2, GenerationFailed("It failed")

    stream = sdk.completions.create(model="tiny", prompt="a", stream=True)

    with pytest.raises(openai.APIError, match="It failed"):
        list(stream)


def test_stop_strings_end_the_engine_s_work(live: Any, http: httpx2.Client) -> None:
    http.post("/v1/completions", json={"prompt": "a", "stop": "how"})

    [stream] = live.engine.streams
    assert stream.is_closed and stream.was_stopped
    assert stream.num_said < 8


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("delay", [0.02, 60.0])
def test_leaving_clients_free_the_engine(
    live: Any, endpoint: str, is_stream: bool, delay: float
) -> None:
    live.says("one two " * 100)
    live.engine.delay = delay
    url = urlsplit(live.url)
    body = orjson.dumps({**ENDPOINTS[endpoint], "stream": is_stream, "n": 3, "max_tokens": 200})
    head = (
        f"POST /v1/{endpoint} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(head.encode() + body)
        if is_stream and delay < 1:
            assert connection.recv(100)
        else:
            wait_until(lambda: len(live.engine.streams) == 3)

    wait_until(lambda: all(stream.is_closed for stream in live.engine.streams))
    assert not any(stream.was_stopped for stream in live.engine.streams)
    assert all(stream.num_said < 200 for stream in live.engine.streams)


async def generation_of(live: Any, choices: int = 1) -> Generation:
    request = CompletionRequest.model_validate({"prompt": "a", "n": choices})
    contexts = build_contexts(
        live.engine, live.app.state.served, request, [[5, 6]], param="prompt", default_max_tokens=16
    )
    return Generation(
        live.engine,
        contexts,
        live.tokenizer,
        origin=Origin(),
        choices_per_prompt=choices,
        starts_fresh=False,
    )


async def test_slow_reader_does_not_make_a_queue_grow(live: Any) -> None:
    generation = await generation_of(live, choices=4)
    while generation._deltas.qsize() == 0:
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)

    assert generation._deltas.qsize() == 1
    assert all(stream.num_said <= 2 for stream in live.engine.streams)
    generation.close()
    assert await generation.next() is None


async def test_closing_wakes_a_waiting_reader(live: Any) -> None:
    live.engine.delay = 60.0
    generation = await generation_of(live, choices=2)
    waiting = asyncio.create_task(generation.next())
    await asyncio.sleep(0.01)

    generation.close()
    generation.close()

    assert await asyncio.wait_for(waiting, 20.0) is None
    assert not generation.is_complete


async def test_cancelled_waits_lose_no_delta(live: Any) -> None:
    live.engine.delay = 0.01
    generation = await generation_of(live)
    text = ""
    while not generation.is_complete:
        try:
            delta = await asyncio.wait_for(generation.next(), 0.003)
        except TimeoutError:
            continue
        assert delta is not None
        text += delta.text

    assert text == "Hello world, how are you today?"
    generation.close()

"""The time that a request allows itself, on its way to the engine."""

import asyncio
import time
from typing import Any

import httpx2
import openai
import orjson
import pytest

from quire.server.errors import DeadlineExceeded

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
ENDPOINTS = {"completions": {"prompt": "Hello"}, "chat/completions": CHAT}


class _SlowGrammars:
    """A compiler that takes longer than anybody waits."""

    was_cancelled = False

    async def compile(self, spec: Any, param: str) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("field", "header", "expected"),
    [(None, None, None), (5, None, 5), (None, "2.5", 2.5), (5, "2.5", 2.5), (1.5, "2.5", 1.5)],
)
def test_the_shorter_of_field_and_header_reaches_the_engine(
    live: Any,
    http: httpx2.Client,
    endpoint: str,
    field: float | None,
    header: str | None,
    expected: float | None,
) -> None:
    headers = {"x-request-id": "mine"} | ({} if header is None else {"x-request-timeout": header})
    body = {**ENDPOINTS[endpoint], "timeout": field}

    assert http.post(f"/v1/{endpoint}", json=body, headers=headers).status_code == 200

    [origin] = live.engine.origins
    assert (origin.timeout, origin.request_id, origin.caller) == (expected, "mine", None)


@pytest.mark.parametrize("value", [0, -1, 86401, "5", True, [1]])
def test_a_time_limit_that_is_none_is_refused(live: Any, http: httpx2.Client, value: Any) -> None:
    reply = http.post("/v1/completions", json={"prompt": "a", "timeout": value})

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "timeout")


def test_a_grammar_is_not_compiled_for_longer_than_the_limit(
    live: Any, http: httpx2.Client
) -> None:
    live.app.state.grammars = slow = _SlowGrammars()
    body = {**CHAT, "timeout": 0.5, "response_format": {"type": "json_object"}}

    reply = http.post("/v1/chat/completions", json=body)
    live.app.state.grammars = None

    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert reply.headers["x-should-retry"] == "false"
    deadline = time.monotonic() + 20
    while not slow.was_cancelled:
        assert time.monotonic() < deadline
    assert live.engine.streams == []


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_limit_that_passes_in_a_stream_is_an_event_and_then_the_end(
    live: Any, http: httpx2.Client, endpoint: str
) -> None:
    live.engine.fails_after, live.engine.failure = 2, DeadlineExceeded(1.5)

    reply = http.post(f"/v1/{endpoint}", json={**ENDPOINTS[endpoint], "stream": True})

    *_, error, done = reply.text.strip().split("\n\n")
    assert (reply.status_code, done) == (200, "data: [DONE]")
    assert orjson.loads(error.removeprefix("data: "))["error"] == {
        "message": "The request was not finished within its time limit of 1.5 s ('timeout' or "
        "x-request-timeout)",
        "type": "api_error",
        "param": None,
        "code": "deadline_exceeded",
    }


def test_the_sdk_does_not_try_again_by_itself(live: Any, server_url: str) -> None:
    live.engine.fails_after, live.engine.failure = 0, DeadlineExceeded(1.5)

    with (
        openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=2) as sdk,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        sdk.completions.create(model="tiny", prompt="a")

    assert caught.value.status_code == 504
    assert len(live.engine.streams) == 1


def test_the_document_has_the_header(live: Any, http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]

    for route in ("/v1/completions", "/v1/chat/completions", "/invocations"):
        names = [parameter["name"] for parameter in paths[route]["post"]["parameters"]]
        assert "x-request-timeout" in names
        assert {"408", "429", "504"} <= paths[route]["post"]["responses"].keys()

"""Streams: the events of each kind of item, and that the end is the reply that is not streamed."""

import json
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from response_events import response, same_for_all, streamed
from tool_models import ARGUMENTS, TEMPLATE, Model, written

from quire.server.errors import GenerationFailed

TEXT = "Hello world, how are you today?"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
THINKS = TEMPLATE + "{# <think> </think> #}"
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}


def test_the_events_of_a_message(live: Any, http: httpx2.Client) -> None:
    events = streamed(http, {"input": "Hello"})

    kinds = [event["type"] for event in events if not event["type"].endswith(".delta")]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    for event in events[:2]:
        assert event["response"]["status"] == "in_progress"
        assert event["response"]["output"] == [] and event["response"]["usage"] is None
    added = events[2]["item"]
    assert added["status"] == "in_progress" and added["content"] == []
    done = events[-2]["item"]
    assert done == events[-1]["response"]["output"][0]
    assert {event.get("item_id", added["id"]) for event in events} == {added["id"]}
    deltas = [event for event in events if event["type"].endswith(".delta")]
    assert len(deltas) > 3
    assert "".join(event["delta"] for event in deltas) == events[-4]["text"] == TEXT


def test_the_events_of_reasoning_and_calls(make: Callable[..., Model], http: httpx2.Client) -> None:
    model = make("hermes", template=THINKS)
    model.says(f"<think>Hm.</think>Look: {written('hermes', ARGUMENTS)}")
    events = streamed(http, {"input": "Hello", "tools": [WEATHER]})

    deltas: dict[tuple[str, int], str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            key = (event["type"], event["output_index"])
            deltas[key] = deltas.get(key, "") + event["delta"]
    assert deltas == {
        ("response.reasoning_text.delta", 0): "Hm.",
        ("response.output_text.delta", 1): "Look:",
        ("response.function_call_arguments.delta", 2): ARGUMENTS,
    }
    done = {event["type"]: event for event in events if event["type"].endswith(".done")}
    assert done["response.reasoning_text.done"]["text"] == "Hm."
    assert done["response.function_call_arguments.done"]["arguments"] == ARGUMENTS
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert items == events[-1]["response"]["output"]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in added] == [item["id"] for item in items]
    assert added[2]["call_id"] == items[2]["call_id"] and added[2]["arguments"] == ""


def test_logprobs_come_with_their_text(live: Any, http: httpx2.Client) -> None:
    live.engine.chunk_size = 2
    live.says("naïve 🙂 日本語")
    events = streamed(http, {"input": "Hello", **LOGPROBS})

    told = []
    for event in events:
        if event["type"] == "response.output_text.delta":
            told += event["logprobs"]
    (part,) = events[-1]["response"]["output"][0]["content"]
    assert told == part["logprobs"]
    assert b"".join(bytes(entry["bytes"]) for entry in told).decode() == part["text"]


PIECES = st.sampled_from(
    ["<think>", "</think>", " ", "\n", "Hm. ", "<tool", "naïve 日本 🙂", TEXT, "STOP", "ST"]
    + [written("hermes", ARGUMENTS), written("hermes", "{}"), written("hermes", ARGUMENTS)[:-9]]
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    pieces=st.lists(PIECES, max_size=6),
    chunk_size=st.integers(1, 40),
    most=st.none() | st.integers(1, 120),
    has_logprobs=st.booleans(),
    has_tools=st.booleans(),
)
def test_the_end_is_the_reply_that_is_not_streamed(
    make: Callable[..., Model],
    http: httpx2.Client,
    pieces: list[str],
    chunk_size: int,
    most: int | None,
    has_logprobs: bool,
    has_tools: bool,
) -> None:
    model = make("hermes", template=THINKS)
    model.says("".join(pieces))
    body: dict[str, Any] = {"input": "Hello", "stop": ["STOP"], "max_output_tokens": most}
    if has_logprobs:
        body |= LOGPROBS
    if has_tools:
        body["tools"] = [WEATHER]
    model.live.engine.chunk_size = 1
    whole = http.post("/v1/responses", json=body).json()
    model.live.engine.chunk_size = chunk_size
    last = streamed(http, body)[-1]

    assert last["type"] == f"response.{whole['status']}"
    assert json.dumps(same_for_all(last["response"])) == json.dumps(same_for_all(whole))
    response(whole)
    for item in whole["output"]:
        for part in item.get("content", ()):
            if part["type"] == "output_text" and has_logprobs:
                data = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"])
                assert data.decode(errors="replace").strip() == part["text"].strip()


def test_the_stream_helper(make: Callable[..., Model], sdk: openai.OpenAI) -> None:
    model = make("hermes", template=THINKS)
    model.says(f"<think>Hm.</think>Look: {written('hermes', ARGUMENTS)}")
    tool: Any = {**WEATHER, "strict": True}
    with sdk.responses.stream(model="tiny", input="Hello", tools=[tool]) as stream:
        snapshots = [e.snapshot for e in stream if e.type.endswith("arguments.delta")]  # type: ignore[union-attr]
        final = stream.get_final_response()

    assert snapshots[-1] == ARGUMENTS
    assert final.output_text == "Look:"
    call = final.output[-1]
    assert call.type == "function_call" and call.parsed_arguments == json.loads(ARGUMENTS)


def test_a_failure_is_told_and_kept(live: Any, http: httpx2.Client) -> None:
    live.engine.fails_after = 3
    live.engine.failure = GenerationFailed("The model failed on this request")
    events = streamed(http, {"input": "Hello"})

    error, last = events[-2:]
    assert (error["type"], error["code"]) == ("error", "generation_failed")
    assert last["type"] == "response.failed"
    failed = last["response"]
    assert failed["status"] == "failed" and failed["usage"] is None
    assert failed["error"] == {
        "code": "server_error",
        "message": "The model failed on this request",
    }
    (item,) = failed["output"]
    assert item["status"] == "incomplete" and TEXT.startswith(item["content"][0]["text"])
    assert http.get(f"/v1/responses/{failed['id']}").json() == failed


def test_a_failure_before_the_first_byte_is_an_error(live: Any, http: httpx2.Client) -> None:
    live.engine.fails_after = 0
    live.engine.failure = GenerationFailed("The model failed on this request")
    for stream in (False, True):
        reply = http.post("/v1/responses", json={"input": "Hello", "stream": stream})
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "generation_failed"
    assert len(live.app.state.responses) == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_it(live: Any, stream: bool) -> None:
    live.engine.delay = 0.05
    live.engine.script = lambda context: [20] * 200
    url = urlsplit(live.url)
    body = json.dumps({"input": "Hello", "stream": stream}).encode()
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(
            b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        if stream:
            assert connection.recv(100)
        else:
            time.sleep(0.2)

    deadline = time.monotonic() + 5
    while not live.engine.streams or live.engine.num_live:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(live.app.state.responses) == 0

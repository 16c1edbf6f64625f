"""A stream adds up to the whole reply, wherever it is cut; silence and failures have their events."""

import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tool_models import ARGUMENTS, TEMPLATE, Model, marks_of, written

from quire.server.errors import GenerationFailed

ASK: Any = [{"role": "user", "content": "Weather?"}]
TOOLS: Any = [
    {
        "name": "get_weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
THINK = TEMPLATE + "{# </think> #}"
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
call = written("hermes", '{"days": [1, 2], "city": "Pa}ris é"}')
pieces = st.sampled_from(["Hi", " ", "\n", "é🙂", "<", "<tool", call, "stop"])
replies = st.builds(
    lambda thought, rest: f"<think>{thought}</think>{rest}" if thought else rest,
    st.sampled_from(["", "Hm. ", "\nLet me see.\n", "x"]),
    st.lists(pieces, max_size=4).map("".join),
)


def told(message: Any) -> Any:
    fields = message.to_dict()
    del fields["id"]
    for block in fields["content"]:
        block.pop("id", None)
    return fields


@pytest.mark.parametrize("marks", [(), marks_of("hermes")])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    reply=replies,
    chunk_size=st.integers(1, 7),
    limit=st.integers(1, 110) | st.just(1000),
    stop=st.sampled_from([[], ["stop"], ["Pa"], ["?", "e"]]),
)
def test_a_stream_adds_up_to_the_whole_reply(
    make: Callable[..., Model],
    sdk: anthropic.Anthropic,
    marks: tuple[str, ...],
    reply: str,
    chunk_size: int,
    limit: int,
    stop: list[str],
) -> None:
    model = make("hermes", marks, THINK)
    model.says(reply)
    model.live.engine.chunk_size = chunk_size
    fields: Any = {
        "model": "tiny",
        "max_tokens": limit,
        "messages": ASK,
        "tools": TOOLS,
        "stop_sequences": stop,
    }

    with sdk.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    whole = sdk.messages.create(**fields)

    assert told(streamed) == told(whole)
    for block in whole.content:
        assert block.type == "tool_use" or block.to_dict()[block.type]
    if whole.stop_reason == "stop_sequence":
        assert whole.stop_sequence in stop
    if whole.stop_reason == "max_tokens":
        assert whole.usage.output_tokens == limit


@pytest.mark.parametrize("name", ["hermes", "harmony", "mistral", "deepseek_v3", "llama3_json"])
def test_events_are_well_formed(make: Callable[..., Model], http: httpx2.Client, name: str) -> None:
    make(name, marks_of(name)).says(written(name, ARGUMENTS))
    body = {"model": "tiny", "max_tokens": 500, "messages": ASK, "tools": TOOLS, "stream": True}

    reply = http.post("/v1/messages", json=body)

    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    open_, closed, partial = None, -1, ""
    for text in reply.text.strip().split("\n\n"):
        head, data = text.split("\n")
        event = EVENTS.validate_python(json.loads(data.removeprefix("data: ")), strict=True)
        assert head == f"event: {event.type}"
        if event.type == "content_block_start":
            assert open_ is None and event.index == closed + 1
            open_ = event.index
        elif event.type == "content_block_delta":
            assert event.index == open_
            partial += getattr(event.delta, "partial_json", "")
        elif event.type == "content_block_stop":
            assert event.index == open_
            open_, closed = None, event.index
    assert open_ is None and event.type == "message_stop"
    assert json.loads(partial) == json.loads(ARGUMENTS)


def test_a_call_that_is_cut_off_has_the_input_so_far(
    make: Callable[..., Model], sdk: anthropic.Anthropic
) -> None:
    make("hermes").says(call)
    fields: Any = {"model": "tiny", "messages": ASK, "tools": TOOLS}

    message = sdk.messages.create(**fields, max_tokens=call.index("Pa"))

    assert message.stop_reason == "max_tokens"
    (block,) = message.content
    assert block.type == "tool_use" and block.input == {"days": [1, 2]}


@pytest.mark.parametrize(
    "arguments",
    [
        '{"days": 123456789012345678901234567890, "rain": 0.1000000000000000000000000001}',
        '{"city": "\\ud83d", "city": "\\ud83d\\ude42"}',
        '{"city": ' + "[" * 300 + "]" * 300 + "}",
        "{}",
    ],
)
def test_a_call_has_its_input_as_the_model_wrote_it(
    make: Callable[..., Model], http: httpx2.Client, arguments: str
) -> None:
    make("hermes").says(written("hermes", arguments))
    body = {"model": "tiny", "max_tokens": 900, "messages": ASK, "tools": TOOLS}

    reply = http.post("/v1/messages", json=body)

    assert f'"input":{arguments}}}' in reply.text


@pytest.mark.parametrize(
    ("arguments", "is_cut"),
    [
        ('{"days": 123456789012345678901234567890, "city": "x"}', True),
        ('{"days": NaN}', False),
    ],
)
def test_an_input_that_is_no_json_is_made_some(
    make: Callable[..., Model], http: httpx2.Client, arguments: str, is_cut: bool
) -> None:
    text = written("hermes", arguments)
    make("hermes").says(text)
    limit = text.index('"x"') if is_cut else 900
    body = {"model": "tiny", "max_tokens": limit, "messages": ASK, "tools": TOOLS}

    reply = http.post("/v1/messages", json=body)

    assert reply.status_code == 200, reply.text
    days = 123456789012345678901234567890 if is_cut else None
    assert reply.json()["content"][0]["input"] == {"days": days}


def test_silence_is_broken_by_pings(live: Any, http: httpx2.Client) -> None:
    live.engine.delay = 0.3
    body = {"model": "tiny", "max_tokens": 3, "messages": ASK, "stream": True}

    text = http.post("/v1/messages", json=body).text

    assert 'event: ping\ndata: {"type":"ping"}\n\n' in text
    assert text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')


def test_a_failure_is_an_event_that_the_client_raises(
    live: Any, http: httpx2.Client, sdk: anthropic.Anthropic
) -> None:
    live.engine.fails_after, live.engine.failure = 2, GenerationFailed("It failed")
    fields: Any = {"model": "tiny", "max_tokens": 30, "messages": ASK}

    last = http.post("/v1/messages", json={**fields, "stream": True}).text.strip().split("\n\n")[-1]
    with (
        pytest.raises(anthropic.APIStatusError, match="It failed"),
        sdk.messages.stream(**fields) as stream,
    ):
        stream.get_final_message()

    head, data = last.split("\n")
    error = json.loads(data.removeprefix("data: "))
    assert head == "event: error"
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert error["request_id"]

"""Responses of the demo model through a live server and the official client."""

import json
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel
from response_events import response, same_for_all, streamed

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
    "strict": False,
}
ASK = "What is the weather in Paris?"
FIELDS: dict[str, Any] = {"model": "quire-demo", "temperature": 0.0, "max_output_tokens": 120}


@pytest.fixture
def server(demo):
    return demo


async def test_a_tool_loop(server, connect):
    """By id and by items; what a chat of the same conversation says, they say."""
    client = connect(server)
    first = await client.responses.create(input=ASK, tools=[WEATHER], **FIELDS)
    (call,) = first.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert json.loads(call.arguments) == {"city": "Paris"}

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    raw = await client.responses.with_raw_response.create(
        input=[result], tools=[WEATHER], previous_response_id=first.id, **FIELDS
    )
    by_id = raw.parse()
    asked = {"role": "user", "content": ASK}
    by_items = await client.responses.create(
        input=[asked, *first.output, result], tools=[WEATHER], store=False, **FIELDS
    )
    function = {name: WEATHER[name] for name in ("name", "description", "parameters")}
    called = {"name": call.name, "arguments": call.arguments}
    chat = await client.chat.completions.create(
        model="quire-demo",
        temperature=0.0,
        max_tokens=120,
        tools=[{"type": "function", "function": function}],
        messages=[
            asked,
            {
                "role": "assistant",
                "tool_calls": [{"id": call.call_id, "type": "function", "function": called}],
            },
            {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"},
        ],
    )

    assert "x-quire-warning" not in raw.headers
    assert "sunny" in by_id.output_text and "Paris" in by_id.output_text
    assert by_id.output_text == by_items.output_text == chat.choices[0].message.content
    assert by_id.usage.input_tokens == by_items.usage.input_tokens == chat.usage.prompt_tokens
    assert by_id.usage.input_tokens_details.cached_tokens > 0
    listed = await client.responses.input_items.list(by_id.id)
    assert [item.type for item in listed.data] == ["function_call_output"]


@pytest.mark.parametrize("seed", range(3))
def test_the_stream_ends_with_the_whole_reply(server, seed):
    body = {
        "input": ASK,
        "tools": [WEATHER],
        "tool_choice": ["auto", "required", "none"][seed],
        "temperature": 1.0,
        "seed": seed,
        "max_output_tokens": 80,
        "include": ["message.output_text.logprobs"],
    }
    whole = server.http.post("/v1/responses", json=body).json()
    *_, last = streamed(server.http, body)

    response(whole)
    for reply in (whole, last["response"]):
        # The second finds the first one's prompt in the cache.
        reply["usage"]["input_tokens_details"]["cached_tokens"] = 0
    assert same_for_all(last["response"]) == same_for_all(whole)


class Town(BaseModel):
    name: str
    people: int


async def test_parse(server, connect):
    for seed in range(3):
        reply = await connect(server).responses.parse(
            model="quire-demo",
            input="Tell me of a town.",
            text_format=Town,
            extra_body={"seed": seed},
            max_output_tokens=300,
        )
        if reply.status == "completed":
            assert isinstance(reply.output_parsed, Town)
            schema = reply.text.format.schema_
            jsonschema.validate(json.loads(reply.output_text), schema)


async def test_leaving_in_the_middle_leaves_nothing(server, connect):
    stream = await connect(server).responses.create(
        model="quire-demo", input="Tell me a story.", stream=True, extra_body={"ignore_eos": True}
    )
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()

    server.wait_idle()


async def test_what_is_kept_is_counted(server, connect):
    client: openai.AsyncOpenAI = connect(server)
    before = server.metric("quire_responses_stored")
    made = await client.responses.create(input="Hello!", **FIELDS)

    assert server.metric("quire_responses_stored") == before + 1
    assert server.metric("quire_responses_stored_bytes") > 1000
    await client.responses.delete(made.id)
    assert server.metric("quire_responses_stored") == before

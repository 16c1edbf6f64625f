"""Tool calls of the demo model through a live server and the official client."""

import json

import httpx2
import jsonschema
import openai
import pytest
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIMER = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Set a timer in minutes",
        "parameters": {
            "type": "object",
            "properties": {"minutes": {"type": "integer", "minimum": 1, "maximum": 60}},
            "required": ["minutes"],
        },
    },
}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
FIELDS = {"model": "quire-demo", "temperature": 0.0, "max_tokens": 120}


@pytest.fixture
def server(demo):
    return demo


async def test_the_model_calls_and_reads_the_result(server, connect):
    client = connect(server)
    reply = await client.chat.completions.create(messages=ASK, tools=[WEATHER], **FIELDS)

    choice = reply.choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert call.id.startswith("call_") and len(call.id) == 29

    messages = [
        *ASK,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    raw = await client.chat.completions.with_raw_response.create(
        messages=messages, tools=[WEATHER], **FIELDS
    )
    answer = raw.parse().choices[0]
    assert "x-quire-warning" not in raw.headers
    assert answer.finish_reason == "stop" and answer.message.tool_calls is None
    assert "sunny" in answer.message.content and "Paris" in answer.message.content


async def test_streams_say_what_whole_replies_say(server, connect):
    client = connect(server)
    fields = {**FIELDS, "temperature": 1.0, "seed": 5, "n": 2, "tool_choice": "required"}
    whole = await client.chat.completions.create(messages=ASK, tools=[WEATHER, TIMER], **fields)
    async with client.chat.completions.stream(
        messages=ASK, tools=[WEATHER, TIMER], **fields
    ) as stream:
        names = [event.name async for event in stream if event.type.endswith("arguments.done")]
        final = await stream.get_final_completion()

    for streamed, choice in zip(final.choices, whole.choices, strict=True):
        assert streamed.finish_reason == choice.finish_reason == "tool_calls"
        assert [call.function.arguments for call in streamed.message.tool_calls] == [
            call.function.arguments for call in choice.message.tool_calls
        ]
        assert len({call.id for call in streamed.message.tool_calls}) == len(
            streamed.message.tool_calls
        )
    assert set(names) <= {"get_weather", "set_timer"} and names


class GetTime(BaseModel):
    """Get the time in a city"""

    city: str


async def test_the_clients_pydantic_tools(server, connect):
    tool = openai.pydantic_function_tool(GetTime, name="get_time")
    ask = [{"role": "user", "content": "What time is it in Rome?"}]
    reply = await connect(server).chat.completions.parse(messages=ask, tools=[tool], **FIELDS)

    (call,) = reply.choices[0].message.tool_calls
    assert call.function.parsed_arguments == GetTime(city="Rome")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "set_timer"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [{"type": "function", "function": {"name": "set_timer"}}],
            },
        },
    ],
)
def test_a_function_that_does_not_fit_is_still_called_rightly(server, choice, seed):
    body = {
        "messages": ASK,
        "tools": [WEATHER, TIMER],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 1.5,
        "seed": seed,
        "max_tokens": 200,
    }
    reply = server.http.post("/v1/chat/completions", json=body)

    assert reply.status_code == 200, reply.text
    (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "set_timer"
    arguments = json.loads(call["function"]["arguments"])
    jsonschema.validate(arguments, TIMER["function"]["parameters"])


def test_none_leaves_the_tools_out(server):
    plain = {"messages": ASK, **FIELDS}
    bare = server.http.post("/v1/chat/completions", json=plain).json()
    body = {**plain, "tools": [WEATHER], "tool_choice": "none"}
    reply = server.http.post("/v1/chat/completions", json=body).json()

    assert reply["choices"][0]["message"] == bare["choices"][0]["message"]
    assert reply["usage"] == bare["usage"]


def test_a_cut_call_keeps_its_arguments_so_far(server):
    body = {"messages": ASK, "tools": [WEATHER], "tool_choice": "required", **FIELDS}
    whole = server.http.post("/v1/chat/completions", json=body).json()
    arguments = whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    seen = set()
    for most in range(1, whole["usage"]["completion_tokens"]):
        cut = server.http.post("/v1/chat/completions", json={**body, "max_tokens": most}).json()
        choice = cut["choices"][0]
        assert choice["finish_reason"] == "length"
        assert cut["usage"]["completion_tokens"] == most
        for call in choice["message"].get("tool_calls", ()):
            seen.add(call["function"]["arguments"])
            assert arguments.startswith(call["function"]["arguments"])
    assert len(seen) > 2


def test_logprobs_cover_every_token(server):
    body = {"messages": ASK, "tools": [WEATHER], "logprobs": True, **FIELDS}
    whole = server.http.post("/v1/chat/completions", json=body).json()
    entries = whole["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries).startswith("<tool_call>")
    streamed = []
    with server.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    streamed += (choice["logprobs"] or {"content": []})["content"]
    assert streamed == entries


def test_broken_histories_are_read_with_a_warning(server):
    messages = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "a",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Par'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "b", "content": "<|im_end|> sunny"},
        {"role": "tool", "content": "rain"},
    ]
    reply = server.http.post("/v1/chat/completions", json={"messages": messages, **FIELDS})

    assert reply.status_code == 200, reply.text
    warning = reply.headers["x-quire-warning"]
    assert "messages.1.tool_calls.0.function.arguments is no JSON object" in warning
    assert "messages.2 answers no tool call" in warning
    assert "messages.3 answers no tool call" in warning


def test_control_tokens_in_tools_are_text(server):
    """Names of arguments and values alike: nobody ends a turn from within them."""
    odd = {
        "type": "function",
        "function": {
            "name": "f",
            "description": "<|im_end|>",
            "parameters": {"type": "object", "properties": {"<|im_end|>": {"type": "null"}}},
        },
    }
    body = {"messages": ASK, "tools": [odd], "return_token_strs": True}
    strings = server.http.post("/tokenize", json=body).json()["token_strs"]
    plain = server.http.post("/tokenize", json={**body, "tools": [WEATHER]}).json()["token_strs"]

    assert strings.count("<|im_end|>") == plain.count("<|im_end|>") == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required", "min_tokens": 3}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"type": "object", "patternProperties": {}},
                        },
                    }
                ]
            },
            "tools.0.function.parameters",
        ),
    ],
)
def test_what_tools_cannot_be_combined_with(server, fields, param):
    body = {"messages": ASK, "tools": [WEATHER], **FIELDS, **fields}
    reply = server.http.post("/v1/chat/completions", json=body)

    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_an_unenforceable_schema_is_told(server):
    schema = {"type": "object", "properties": {"city": {"type": "string", "format": "town"}}}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    body = {"messages": ASK, "tools": [tool], "tool_choice": "required", **FIELDS}
    reply: httpx2.Response = server.http.post("/v1/chat/completions", json=body)

    assert reply.status_code == 200
    assert "tools.0.function.parameters not enforced: 'format'" in reply.headers["x-quire-warning"]
    assert isinstance(
        json.loads(reply.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]),
        dict,
    )


def test_an_answers_schema_beside_tools(server):
    schema = {"type": "object", "properties": {"ok": {"enum": [True]}}, "required": ["ok"]}
    format_ = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for seed in range(4):
        body = {
            "messages": [{"role": "user", "content": "Hello!"}],
            "tools": [WEATHER],
            "response_format": format_,
            "temperature": 1.5,
            "seed": seed,
            "max_tokens": 200,
        }
        choice = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]
        if choice["finish_reason"] == "stop":
            assert json.loads(choice["message"]["content"]) == {"ok": True}
        elif choice["finish_reason"] == "tool_calls":
            assert choice["message"]["content"] is None

"""Whole responses: what they hold, and that it is what was asked for."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from pydantic import BaseModel
from response_events import response
from tool_models import ARGUMENTS, TEMPLATE, Model, written

TEXT = "Hello world, how are you today?"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
THINKS = TEMPLATE + "{# <think> </think> #}"


def created(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    reply = http.post("/v1/responses", json={"input": "Hello", **fields})
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    response(body)
    return body


def test_every_field_of_a_plain_reply(live: Any, http: httpx2.Client) -> None:
    live.engine.cached_tokens = 3
    body = created(http)

    assert body["id"].startswith("resp_")
    (item,) = body.pop("output")
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}],
    }
    assert body["completed_at"] >= body["created_at"] > 0
    told = {"id", "created_at", "completed_at", "usage"}
    assert {name: value for name, value in body.items() if name not in told} == {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "background": False,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "model": "tiny",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }
    usage = body["usage"]
    assert usage["input_tokens_details"] == {"cached_tokens": 3, "cache_write_tokens": 0}
    assert usage["output_tokens"] == live.engine.streams[0].num_said
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_what_was_asked_is_told_and_done(live: Any, http: httpx2.Client) -> None:
    fields = {
        "instructions": "Be kind.",
        "max_output_tokens": 100,
        "max_tool_calls": 4,
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "temperature": 0.5,
        "top_p": 0.25,
        "store": False,
    }
    body = created(
        http,
        **fields,
        service_tier="auto",
        truncation="disabled",
        background=False,
        prompt_cache_retention="24h",
        seed=7,
        top_k=3,
        stop=["today"],
    )

    assert {name: body[name] for name in fields} == fields
    params = live.engine.streams[0].context.params
    assert (params.temperature, params.top_p, params.max_new_tokens) == (0.5, 0.25, 100)
    assert (params.seed, params.top_k, params.stop) == (7, 3, ("today",))
    assert body["output"][0]["content"][0]["text"] == "Hello world, how are you "


def test_instructions_are_the_first_message(live: Any, http: httpx2.Client) -> None:
    created(http, instructions="Be kind.", input=[{"role": "developer", "content": "Now."}])

    prompt = live.engine.streams[0].context.tokens.prompt.tolist()
    assert live.tokenizer.decode(prompt, skip_special_tokens=False) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>system\nNow.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_cut_reply_is_incomplete(live: Any, http: httpx2.Client) -> None:
    body = created(http, max_output_tokens=3)

    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["completed_at"] is None
    assert body["output"][0]["status"] == "incomplete"
    assert TEXT.startswith(body["output"][0]["content"][0]["text"])


def test_an_empty_reply_is_an_empty_message(live: Any, http: httpx2.Client) -> None:
    live.says("")
    body = created(http)

    assert body["output"][0]["content"][0]["text"] == ""
    assert body["output"][0]["status"] == "completed"


def test_reasoning_text_and_calls_are_items(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    model = make("hermes", template=THINKS)
    call = written("hermes", ARGUMENTS)
    model.says(f"<think>Hm.</think>\n\nLook: {call}\n{call}")
    body = created(http, tools=[WEATHER])

    thought, said, *calls = body["output"]
    assert thought["type"] == "reasoning" and thought["summary"] == []
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert said["content"][0]["text"] == "Look:"
    assert [item["name"] for item in calls] == ["get_weather"] * 2
    assert [item["arguments"] for item in calls] == [ARGUMENTS] * 2
    assert {item["status"] for item in body["output"]} == {"completed"}
    ids = {item["id"] for item in body["output"]} | {item["call_id"] for item in calls}
    assert len(ids) == 6
    assert body["tools"] == [{**WEATHER, "description": None, "strict": None}]
    assert "TOOLS" in model.prompt
    assert body["usage"]["output_tokens_details"] == {"reasoning_tokens": len("Hm.")}


@pytest.mark.parametrize("tokens", range(8, 90, 9))
def test_a_cut_call_is_incomplete(
    make: Callable[..., Model], http: httpx2.Client, tokens: int
) -> None:
    model = make("hermes", template=THINKS)
    model.says(f"<think>Hm.</think>{written('hermes', ARGUMENTS)}")
    body = created(http, tools=[WEATHER], max_output_tokens=tokens)

    assert body["status"] == "incomplete"
    *before, last = body["output"]
    assert {item["status"] for item in before} <= {"completed"}
    if last["type"] == "function_call":
        assert ARGUMENTS.startswith(last["arguments"])
        assert last["arguments"] == ARGUMENTS or last["status"] == "incomplete"


@pytest.mark.parametrize("name", ["hermes", "harmony", "mistral", "glm45"])
def test_a_call_that_the_model_broke_off_is_incomplete(
    make: Callable[..., Model], http: httpx2.Client, name: str
) -> None:
    model = make(name)
    call = written(name, ARGUMENTS)
    for text, status in ((call, "completed"), (call[: call.index("Pa") + 2], "incomplete")):
        model.says(text)
        body = created(http, tools=[WEATHER])
        item = body["output"][-1]

        assert (item["type"], item["status"]) == ("function_call", status)
        assert body["status"] == "completed"


def test_tool_choices(make: Callable[..., Model], http: httpx2.Client) -> None:
    model = make("hermes")
    model.says(written("hermes", ARGUMENTS))
    named = {"type": "function", "name": "get_weather"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    for choice in (named, allowed, "required", "none"):
        body = created(http, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)
        assert body["tool_choice"] == choice and body["parallel_tool_calls"] is False
        assert body["output"][0]["type"] == ("message" if choice == "none" else "function_call")


def test_logprobs_are_of_the_text_alone(make: Callable[..., Model], http: httpx2.Client) -> None:
    model = make("hermes", template=THINKS)
    model.says(f"<think>Hm.</think>\n\nLook, <b 日本! {written('hermes', ARGUMENTS)}")
    body = created(http, tools=[WEATHER], include=["message.output_text.logprobs"], top_logprobs=2)

    (part,) = body["output"][1]["content"]
    data = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"])
    assert data.decode() == part["text"] == "Look, <b 日本!"
    assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {2}
    assert body["top_logprobs"] == 2


def test_reasoning_goes_back_without_being_stored(
    make: Callable[..., Model], sdk: openai.OpenAI
) -> None:
    """As clients do that keep nothing on a server, Codex and the Agents SDK among them."""
    model = make("hermes", template=THINKS)
    model.says(f"<think>Hm.</think>Look: {written('hermes', ARGUMENTS)}")
    asked: list[Any] = [{"role": "user", "content": "Weather?"}]
    fields: dict[str, Any] = {"model": "tiny", "tools": [{**WEATHER, "strict": None}]}
    stateless = {"store": False, "include": ["reasoning.encrypted_content"]}
    first = sdk.responses.create(input=asked, **fields, **stateless)
    thought, *_, call = first.output
    assert thought.type == "reasoning" and thought.encrypted_content is None
    assert thought.content is not None and thought.content[0].text == "Hm."
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    back = [item.model_dump() for item in first.output]
    sdk.responses.create(input=[*asked, *back, result], **fields, **stateless)
    by_items = model.prompt
    kept = sdk.responses.create(input=asked, **fields)
    result["call_id"] = kept.output[-1].call_id  # type: ignore[union-attr]
    sdk.responses.create(input=[result], previous_response_id=kept.id, **fields)

    assert "(why: Hm.)" in by_items
    assert by_items.replace(call.call_id, "") == model.prompt.replace(result["call_id"], "")


class Answer(BaseModel):
    city: str


def test_the_client_parses_what_it_asked_for(
    make: Callable[..., Model], sdk: openai.OpenAI
) -> None:
    model = make()
    model.says('{"city": "Rome"}')
    parsed = sdk.responses.parse(model="tiny", input="Where?", text_format=Answer)

    assert parsed.output_parsed == Answer(city="Rome")
    assert parsed.text is not None and parsed.text.format is not None
    assert parsed.text.format.type == "json_schema"
    ((spec, param),) = model.compiler.asked
    assert spec.kind == "json_schema" and param == "response_format.json_schema.schema"
    assert json.loads(spec.source)["properties"] == {"city": {"type": "string"}}


def test_the_client_parses_arguments(make: Callable[..., Model], sdk: openai.OpenAI) -> None:
    model = make("hermes")
    model.says(written("hermes", '{"city": "Rome"}').replace("get_weather", "Answer"))
    tool: Any = openai.pydantic_function_tool(Answer)
    parsed = sdk.responses.parse(model="tiny", input="Where?", tools=[tool])

    (call,) = parsed.output
    assert call.type == "function_call" and call.parsed_arguments == Answer(city="Rome")


def test_verbosity_is_warned_of(live: Any, http: httpx2.Client) -> None:
    reply = http.post("/v1/responses", json={"input": "a", "text": {"verbosity": "low"}})

    assert reply.json()["text"]["verbosity"] == "low"
    assert "text.verbosity has no effect" in reply.headers["x-quire-warning"]


async def test_the_async_client(live: Any, server_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none") as client:
        made = await client.responses.create(model="tiny", input="Hello")
        again = await client.responses.retrieve(made.id)
        async with client.responses.stream(model="tiny", input="Hello") as stream:
            final = await stream.get_final_response()

    assert made == again
    assert made.output_text == final.output_text == TEXT


@pytest.mark.parametrize("most", [1, 100])
def test_the_oldest_messages_make_room(live: Any, http: httpx2.Client, most: int) -> None:
    """As few as must be, and not the instructions."""
    items = [{"role": "user", "content": f"{n} " + "x" * 20} for n in range(40)]
    body = {"input": items, "instructions": "Be kind.", "max_output_tokens": most}
    refused = http.post("/v1/responses", json=body)
    reply = http.post("/v1/responses", json={**body, "truncation": "auto"})

    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert reply.status_code == 200, reply.text
    assert reply.json()["truncation"] == "auto"
    prompt = live.engine.streams[-1].context.tokens.prompt.tolist()
    text = live.tokenizer.decode(prompt, skip_special_tokens=False)
    kept = text.count("user\n")
    assert text.startswith("<|im_start|>system\nBe kind.") and f"user\n{40 - kept} x" in text
    assert reply.headers["x-quire-warning"] == (
        f"truncation: the oldest {40 - kept} messages were left out"
    )
    more = [*items[40 - kept - 1 :]]
    assert http.post("/v1/responses", json={**body, "input": more}).status_code == 400
    assert http.post("/v1/responses", json={**body, "input": more[1:]}).status_code == 200


def test_truncation_keeps_results_with_their_calls(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    model = make("hermes")
    model.says("ok")
    model.live.engine.max_length = 400
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}
    items = [
        {"role": "user", "content": "x" * 300},
        {"role": "user", "content": "y"},
        call,
        {"type": "function_call_output", "call_id": "c", "output": "z" * 200},
        call,
        {"type": "function_call_output", "call_id": "d", "output": "z" * 100},
    ]
    reply = http.post("/v1/responses", json={"input": items, "truncation": "auto"})
    assert reply.status_code == 200, reply.text
    assert model.prompt.startswith("[user] y;")
    assert reply.headers["x-quire-warning"].split("; ") == [
        "input.2.arguments is no JSON object",
        "input.4.arguments is no JSON object",
        "input.5 answers no tool call of this conversation",
        "truncation: the oldest 1 messages were left out",
    ]
    items[1]["content"] = "y" * 100
    http.post("/v1/responses", json={"input": items, "truncation": "auto"})
    assert model.prompt.startswith("[assistant]  c f")
    items[5]["output"] = "z" * 400
    refused = http.post("/v1/responses", json={"input": items, "truncation": "auto"})
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "input"


def test_input_tokens_are_counted(make: Callable[..., Model], sdk: openai.OpenAI) -> None:
    model = make("hermes")
    model.says("ok")
    tool: Any = {**WEATHER, "strict": False}
    first = sdk.responses.create(model="tiny", input="Hello")
    fields: dict[str, Any] = {
        "model": "tiny",
        "input": "How?",
        "instructions": "Be kind.",
        "previous_response_id": first.id,
        "tools": [tool],
    }
    counted = sdk.responses.input_tokens.count(**fields)
    made = sdk.responses.create(**fields)

    assert counted.object == "response.input_tokens"
    assert made.usage is not None and counted.input_tokens == made.usage.input_tokens
    for wrong in ({"conversation": "conv_1"}, {"truncation": "auto"}, {"input": 5}):
        with pytest.raises(openai.BadRequestError):
            sdk.responses.input_tokens.count(**{**fields, **wrong})  # type: ignore[arg-type]

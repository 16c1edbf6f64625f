"""The official client of Anthropic, unchanged: whole replies, streams, tools, parsing, counting."""

import json
from collections.abc import Callable
from typing import Any

import anthropic
import pytest
from anthropic.lib.streaming import MessageStreamEvent
from pydantic import BaseModel, TypeAdapter
from tool_models import ARGUMENTS, Model, written

MODEL = "tiny"
TEXT = "Hello world, how are you today?"
WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
THINK = "{{ enable_thinking }}</think>{% for m in messages %}[{{ m.role }}] {{ m.content }}" + (
    "{% if m.reasoning_content %} (why: {{ m.reasoning_content }}){% endif %};{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def ask(text: str = "Hello") -> Any:
    return [{"role": "user", "content": text}]


def told(message: Any) -> Any:
    """A reply without what differs each time."""
    fields = message.to_dict()
    del fields["id"]
    for block in fields["content"]:
        block.pop("id", None)
        block.pop("parsed_output", None)
    return fields


def test_whole(live: Any, sdk: anthropic.Anthropic) -> None:
    live.engine.cached_tokens = 2
    live.engine.chunk_size = 3

    raw = sdk.messages.with_raw_response.create(model=MODEL, max_tokens=64, messages=ask())

    message = raw.parse()
    assert anthropic.types.Message.model_validate(raw.http_response.json(), strict=True)
    assert (message.role, message.type, message.model) == ("assistant", "message", MODEL)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": TEXT}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message._request_id == raw.headers["x-request-id"]
    prompt = live.engine.streams[0].context.tokens.prompt_length
    assert message.usage.to_dict() == {
        "input_tokens": prompt - 2,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 0,
        "output_tokens": 10,
        "output_tokens_details": {"thinking_tokens": 0},
    }


async def test_async(live: Any) -> None:
    async with anthropic.AsyncAnthropic(base_url=live.url, api_key="none") as client:
        message = await client.messages.create(model=MODEL, max_tokens=64, messages=ask())
        async with client.messages.stream(model=MODEL, max_tokens=64, messages=ask()) as stream:
            pieces = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
        count = await client.messages.count_tokens(model=MODEL, messages=ask())

    assert "".join(pieces) == TEXT
    assert told(final) == told(message)
    assert count.input_tokens == message.usage.input_tokens


def test_stream(live: Any, sdk: anthropic.Anthropic) -> None:
    fields: Any = {"model": MODEL, "max_tokens": 64, "messages": ask()}
    adapter: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)

    with sdk.messages.create(**fields, stream=True) as stream:
        raw = [adapter.validate_python(event.to_dict(), strict=True) for event in stream]
    with sdk.messages.stream(**fields) as helper:
        events: list[MessageStreamEvent] = list(helper)
        final = helper.get_final_message()

    kinds = [event.type for event in raw]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert raw[0].message.stop_reason is None and raw[0].message.content == []
    assert "".join(event.text for event in events if event.type == "text") == TEXT
    assert told(final) == told(sdk.messages.create(**fields))


@pytest.mark.parametrize("format_", ["hermes", "harmony", "pythonic"])
def test_tool_use(make: Callable[..., Model], sdk: anthropic.Anthropic, format_: str) -> None:
    model = make(format_)
    model.says(written(format_, ARGUMENTS))
    fields: Any = {
        "model": MODEL,
        "max_tokens": 200,
        "messages": ask(),
        "tools": [WEATHER],
        "tool_choice": {"type": "any"},
    }

    message = sdk.messages.create(**fields)
    with sdk.messages.stream(**fields) as stream:
        partial = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()

    call = message.content[-1]
    assert call.type == "tool_use" and call.id.startswith("toolu_")
    assert (call.name, call.input) == ("get_weather", json.loads(ARGUMENTS))
    assert json.loads("".join(partial)) == call.input
    assert message.stop_reason == "tool_use"
    assert told(final) == told(message)


def test_the_tool_runner_answers_calls(
    make: Callable[..., Model], sdk: anthropic.Anthropic
) -> None:
    model = make("hermes")
    replies = iter([written("hermes", '{"city": "Paris"}'), "Sunny."])
    eos = model.eos

    def script(context: Any) -> list[int]:
        return [*model.tokenizer.encode(next(replies), add_special_tokens=False), eos]

    model.live.engine.script = script

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    runner = sdk.beta.messages.tool_runner(
        model=MODEL, max_tokens=200, messages=ask("Weather?"), tools=[get_weather]
    )
    last = list(runner)[-1]

    assert last.content[0].to_dict() == {"type": "text", "text": "Sunny."}
    prompt = model.prompt
    assert 'get_weather {"city": "Paris"}' in prompt and "sunny in Paris" in prompt
    assert "The weather of a city." in prompt


class City(BaseModel):
    name: str


def test_parse(make: Callable[..., Model], sdk: anthropic.Anthropic) -> None:
    model = make("hermes")
    model.says('{"name": "Paris"}')
    fields: Any = {"model": MODEL, "max_tokens": 64, "messages": ask(), "output_format": City}

    parsed = sdk.messages.parse(**fields)
    beta = sdk.beta.messages.parse(**fields)
    with sdk.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()

    assert parsed.parsed_output == beta.parsed_output == City(name="Paris")
    assert streamed.parsed_output == City(name="Paris")
    assert model.compiler.asked[0][0].kind == "json_schema"


def test_thinking(make: Callable[..., Model], sdk: anthropic.Anthropic) -> None:
    model = make(template=THINK)
    model.says("<think>Let me see.</think>Yes.")
    fields: Any = {
        "model": MODEL,
        "max_tokens": 2000,
        "messages": ask(),
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }

    message = sdk.messages.create(**fields)
    with sdk.messages.stream(**fields) as stream:
        thoughts = [event.thinking for event in stream if event.type == "thinking"]
        final = stream.get_final_message()

    thinking, text = message.content
    assert thinking.type == "thinking" and text.type == "text"
    assert (thinking.thinking, text.text) == ("Let me see.", "Yes.")
    assert thinking.signature
    details = message.usage.output_tokens_details
    assert details is not None and 0 < details.thinking_tokens < message.usage.output_tokens
    assert "".join(thoughts) == thinking.thinking
    assert told(final) == told(message)

    hidden = {**fields, "thinking": {"type": "adaptive", "display": "omitted"}}
    block = sdk.messages.create(**hidden).content[0]
    assert block.to_dict() == {
        "type": "thinking",
        "thinking": "",
        "signature": thinking.signature,
    }

    again: Any = [*ask(), {"role": "assistant", "content": message.content}, *ask("And?")]
    sdk.messages.create(**{**fields, "messages": again})
    assert "[assistant] Yes. (why: Let me see.);[user] And?" in model.prompt


def test_a_request_of_an_agent(make: Callable[..., Model], sdk: anthropic.Anthropic) -> None:
    """The fields that Claude Code sends, of which several only tell Anthropic's own servers."""
    model = make("hermes")
    model.says(written("hermes", '{"city": "Paris"}'))
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Where"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    body: Any = {
        "model": MODEL,
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": "You are an agent."},
            {"type": "text", "text": "Be brief.", **cached},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather?", **cached}]},
        ],
        "tools": [
            {"name": "get_weather", "input_schema": schema, "eager_input_streaming": True, **cached}
        ],
        "metadata": {"user_id": '{"device_id": "a", "session_id": "b"}'},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "betas": ["interleaved-thinking-2025-05-14", "context-management-2025-06-27"],
    }

    with sdk.beta.messages.stream(**body) as stream:
        message = stream.get_final_message()

    assert message.stop_reason == "tool_use"
    assert message.content[-1].to_dict()["input"] == {"city": "Paris"}
    assert "[system] You are an agent.\nBe brief.;[user] Weather?;" in model.prompt

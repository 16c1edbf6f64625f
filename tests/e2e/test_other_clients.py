"""Clients of other servers against the demo model: Anthropic's, Hugging Face's, SGLang's."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import pytest
from huggingface_hub import InferenceClient, constants
from pydantic import BaseModel

MODEL = "quire-demo"
PROMPT = "One cold day"
ASK: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
GREEDY: Any = {"extra_body": {"temperature": 0.0}}
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def claude(demo: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=demo.url, api_key="none", max_retries=0) as client:
        yield client


def said(message: Any) -> Any:
    fields = message.to_dict()
    return fields["stop_reason"], [
        {key: value for key, value in block.items() if key != "id"} for block in fields["content"]
    ]


def test_a_conversation_with_a_tool(claude: anthropic.Anthropic) -> None:
    fields: Any = {"model": MODEL, "max_tokens": 120, "tools": [WEATHER], **GREEDY}
    first = claude.messages.create(messages=ASK, **fields)

    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})

    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    messages = [*ASK, first.to_param(), {"role": "user", "content": [result]}]
    second = claude.messages.create(messages=messages, **fields)
    count = claude.messages.count_tokens(messages=messages, model=MODEL, tools=[WEATHER])

    assert second.stop_reason == "end_turn"
    (text,) = second.content
    assert text.type == "text" and "sunny" in text.text
    usage = second.usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_the_tool_runner_comes_to_an_answer(claude: anthropic.Anthropic) -> None:
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the weather of a city"""
        return "sunny"

    runner = claude.beta.messages.tool_runner(
        model=MODEL, max_tokens=120, messages=ASK, tools=[get_weather], **GREEDY
    )

    *_, last = runner
    assert last.stop_reason == "end_turn" and "sunny" in last.content[0].text


def test_a_stream_says_what_the_whole_reply_says(claude: anthropic.Anthropic) -> None:
    for extra in ({}, {"tools": [WEATHER], "tool_choice": {"type": "any"}}):
        fields: Any = {"model": MODEL, "max_tokens": 60, "messages": ASK, "extra_body": {"seed": 5}}
        whole = claude.messages.create(**fields, **extra)
        with claude.messages.stream(**fields, **extra) as stream:
            final = stream.get_final_message()

        assert said(final) == said(whole)
        assert final.usage.output_tokens == whole.usage.output_tokens


class Weather(BaseModel):
    city: str
    degrees: int


def test_replies_of_a_schema(claude: anthropic.Anthropic) -> None:
    message = claude.messages.parse(
        model=MODEL, max_tokens=200, messages=ASK, output_format=Weather, **GREEDY
    )

    assert isinstance(message.parsed_output, Weather)


def test_text_generation(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    client = InferenceClient(model=demo.url, provider="hf-inference")
    theirs = demo.http.post(
        "/v1/completions",
        json={"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 20, "logprobs": 0},
    ).json()["choices"][0]

    whole = client.text_generation(PROMPT, max_new_tokens=20, details=True)
    events = list(client.text_generation(PROMPT, max_new_tokens=20, details=True, stream=True))

    assert whole.generated_text == events[-1].generated_text == theirs["text"]
    assert whole.details is not None
    told = [token.logprob for token in whole.details.tokens]
    assert told == [event.token.logprob for event in events] == theirs["logprobs"]["token_logprobs"]
    sampled = client.text_generation(PROMPT, max_new_tokens=20, do_sample=True, details=True)
    assert sampled.details is not None
    again = client.text_generation(
        PROMPT, max_new_tokens=20, do_sample=True, seed=sampled.details.seed
    )
    assert again == sampled.generated_text


def test_sglang_generate(demo: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    params = {"temperature": 0, "max_new_tokens": 20}
    text, other = demo.http.post(
        "/generate", json={"text": [PROMPT, "Tom"], "sampling_params": params}
    ).json()
    alone = demo.http.post(
        "/generate",
        json={"text": PROMPT, "sampling_params": params, "return_logprob": True},
    ).json()

    assert (text["text"], text["output_ids"]) == (alone["text"], alone["output_ids"])
    assert text["text"] != other["text"]
    ids = [token for _, token, _ in alone["meta_info"]["output_token_logprobs"]]
    assert ids == alone["output_ids"]
    shaped = {"json_schema": json.dumps(schema), "max_new_tokens": 100, "temperature": 0}
    reply = demo.http.post("/generate", json={"text": PROMPT, "sampling_params": shaped}).json()
    assert reply["meta_info"]["finish_reason"]["type"] == "stop"
    jsonschema.validate(json.loads(reply["text"]), schema)

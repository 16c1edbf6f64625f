"""What becomes of a conversation: its prompt, its sampling, the end of its reply, its count."""

import dataclasses
import json
import string
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from tool_models import END, TEMPLATE, Model

from quire.pipelines.tokenizer import TextTokenizer
from quire.server.anthropic.schema import MessagesRequest
from quire.server.openai.schema import ChatCompletionRequest

TEXT = "Hello world, how are you today?"
USER: Any = {"role": "user", "content": "Hi"}
REASONS = "{# </think> #}"
MARKS = ("<think>", "</think>")
TOOL: Any = {"name": "f", "description": "Does.", "input_schema": {"type": "object"}}
CALL: Any = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1]}}


def post(http: httpx2.Client, messages: Any, **fields: Any) -> httpx2.Response:
    body = {"model": "tiny", "max_tokens": 50, "messages": messages, **fields}
    return http.post("/v1/messages", json=body)


def prompt_of(model: Model, http: httpx2.Client, messages: Any, **fields: Any) -> str:
    model.says("ok")
    reply = post(http, messages, **fields)
    assert reply.status_code == 200, reply.text
    prompt = model.prompt
    names = ("system", "tools", "tool_choice", "thinking", "output_config", "chat_template_kwargs")
    body = {"model": "tiny", "messages": messages}
    body |= {name: fields[name] for name in names if name in fields}
    count = http.post("/v1/messages/count_tokens", json=body)
    assert count.json() == {"input_tokens": reply.json()["usage"]["input_tokens"]}
    return prompt


def result(text: Any, **fields: Any) -> Any:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": text, **fields}


def text(value: str, **fields: Any) -> Any:
    return {"type": "text", "text": value, **fields}


PROMPTS: list[tuple[list[Any], dict[str, Any], str]] = [
    ([USER], {}, "[user] Hi;[assistant]"),
    ([USER], {"system": "Be."}, "[system] Be.;[user] Hi;[assistant]"),
    ([USER], {"system": []}, "[user] Hi;[assistant]"),
    ([USER], {"system": ""}, "[user] Hi;[assistant]"),
    (
        [
            USER,
            {"role": "assistant", "content": [CALL]},
            {"role": "user", "content": [result([])]},
        ],
        {},
        '[user] Hi;[assistant]  toolu_1 f {"a": [1]};[tool f toolu_1] ;[assistant]',
    ),
    (
        [USER],
        {"system": [text("A", cache_control={"type": "ephemeral"}), text("B")]},
        "[system] A\nB;[user] Hi;[assistant]",
    ),
    ([USER, {"role": "user", "content": [text("B")]}], {}, "[user] Hi\nB;[assistant]"),
    (
        [USER, {"role": "assistant", "content": "A"}, {"role": "user", "content": "B"}],
        {},
        "[user] Hi;[assistant] A;[user] B;[assistant]",
    ),
    (
        [{"role": "system", "content": "B"}, USER],
        {"system": "A"},
        "[system] A\nB;[user] Hi;[assistant]",
    ),
    (
        [
            USER,
            {"role": "assistant", "content": [CALL]},
            {"role": "user", "content": [text("C"), result("B")]},
        ],
        {},
        '[user] Hi;[assistant]  toolu_1 f {"a": [1]};[tool f toolu_1] B;[user] C;[assistant]',
    ),
    ([USER, {"role": "system", "content": "Be."}], {}, "[user] Hi;[system] Be.;[assistant]"),
    ([USER, {"role": "assistant", "content": "So "}], {}, "[user] Hi;[assistant] So "),
    ([USER, {"role": "assistant", "content": ""}], {}, "[user] Hi;[assistant]"),
    (
        [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    text("A", citations=None),
                    CALL,
                ],
            },
            {"role": "user", "content": [result("B"), text("C")]},
        ],
        {},
        (
            '[user] Hi;[assistant] A (why: Hm.) toolu_1 f {"a": [1]};[tool f toolu_1] B;[user] C;'
            "[assistant]"
        ),
    ),
    (
        [
            USER,
            {"role": "assistant", "content": [CALL]},
            {"role": "user", "content": [result([text("B"), text("C")], is_error=True)]},
        ],
        {},
        '[user] Hi;[assistant]  toolu_1 f {"a": [1]};[tool f toolu_1] Error: B\nC;[assistant]',
    ),
    (
        [USER],
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        "[user] Hi;[assistant]",
    ),
    (
        [USER],
        {"tools": [{**TOOL, "type": "custom", "cache_control": {"type": "ephemeral"}}]},
        (
            'TOOLS [{"type": "function", "function": {"name": "f", "description": "Does.", '
            '"parameters": {"type": "object"}}}];[user] Hi;[assistant]'
        ),
    ),
]


@pytest.mark.parametrize(("messages", "fields", "prompt"), PROMPTS)
def test_prompts(
    make: Callable[..., Model],
    http: httpx2.Client,
    messages: list[Any],
    fields: dict[str, Any],
    prompt: str,
) -> None:
    assert prompt_of(make("hermes"), http, messages, **fields) == prompt


def test_sampling_fields_arrive(live: Any, http: httpx2.Client) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "stop_sequences": ["zzz"],
        "seed": 5,
        "min_p": 0.1,
        "metadata": {"user_id": "me"},
        "service_tier": "auto",
        "priority": -2,
        "timeout": 30,
    }
    assert post(http, [USER], **fields).status_code == 200

    (context,) = (stream.context for stream in live.engine.streams)
    params = context.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.seed, params.stop, params.max_new_tokens) == (5, ("zzz",), 50)
    assert context.priority == -2 and live.engine.origins[0].timeout == 30


@pytest.mark.parametrize(
    ("fields", "stop_reason", "stop_sequence", "content"),
    [
        ({}, "end_turn", None, TEXT),
        ({"max_tokens": 2}, "max_tokens", None, "Hello"),
        ({"stop_sequences": ["x", "how"]}, "stop_sequence", "how", "Hello world, "),
    ],
)
def test_ends(
    live: Any,
    http: httpx2.Client,
    fields: Any,
    stop_reason: str,
    stop_sequence: str | None,
    content: str,
) -> None:
    reply = post(http, [USER], **fields).json()

    assert (reply["stop_reason"], reply["stop_sequence"]) == (stop_reason, stop_sequence)
    assert reply["content"] == [text(content)]


def test_max_tokens_may_be_more_than_there_is_room_for(live: Any, http: httpx2.Client) -> None:
    live.says("one " * 400, ends=False)

    reply = post(http, [USER], max_tokens=32000).json()

    assert reply["stop_reason"] == "model_context_window_exceeded"
    usage = reply["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == live.engine.max_length


def test_a_prompt_without_room_is_told_in_words_that_agents_know(
    live: Any, sdk: anthropic.Anthropic
) -> None:
    messages: Any = [{"role": "user", "content": "word " * 600}]

    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: .* 256 tokens"):
        sdk.messages.create(model="tiny", max_tokens=5, messages=messages)
    assert sdk.messages.count_tokens(model="tiny", messages=messages).input_tokens > 256


def test_an_empty_reply_has_no_block(live: Any, http: httpx2.Client) -> None:
    live.says("")

    reply = post(http, [USER]).json()

    assert (reply["content"], reply["stop_reason"]) == ([], "end_turn")


@pytest.mark.parametrize(
    ("choice", "is_required", "is_parallel"),
    [
        ({"type": "auto"}, False, True),
        ({"type": "any"}, True, True),
        ({"type": "any", "disable_parallel_tool_use": True}, True, False),
        ({"type": "tool", "name": "f"}, True, False),
    ],
)
def test_tool_choices_become_grammars(
    make: Callable[..., Model],
    http: httpx2.Client,
    choice: Any,
    is_required: bool,
    is_parallel: bool,
) -> None:
    model = make("hermes")
    model.says("ok")
    post(http, [USER], tools=[TOOL], tool_choice=choice)
    chat = {
        "messages": [USER],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        ],
        "tool_choice": "required" if is_required else "auto",
        "parallel_tool_calls": is_parallel,
    }
    http.post("/v1/chat/completions", json=chat)

    ours, theirs = (json.loads(spec.source) for spec, _ in model.compiler.asked)
    assert ours == theirs


def test_a_schema_that_cannot_be_enforced_is_warned_of_or_refused(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    make("hermes").says("ok")
    schema = {"type": "object", "not": {}}
    tool = {"name": "f", "input_schema": schema}

    lenient = post(http, [USER], tools=[tool])
    strict = post(http, [USER], tools=[{**tool, "strict": True}])
    format_ = {"type": "json_schema", "schema": schema}
    answer = post(http, [USER], output_config={"format": format_})

    assert lenient.headers["x-quire-warning"].startswith("tools.0.input_schema not enforced")
    assert "'tools.0.input_schema'" in strict.json()["error"]["message"]
    assert "'output_config.format.schema'" in answer.json()["error"]["message"]


def test_unknown_fields_are_told(live: Any, http: httpx2.Client) -> None:
    reply = post(http, [{**USER, "mood": 1}], colour="red")

    assert reply.headers["x-quire-warning"] == "unknown fields ignored: colour, messages.0.mood"


@pytest.mark.parametrize(
    "name", sorted(ChatCompletionRequest.model_fields.keys() - MessagesRequest.model_fields.keys())
)
@pytest.mark.parametrize("value", [True, False])
def test_fields_of_a_chat_completion_alone_are_told_and_change_nothing(
    make: Callable[..., Model], http: httpx2.Client, name: str, value: bool
) -> None:
    model = make("hermes", MARKS, TEMPLATE + REASONS)
    model.says("<think>Hm.</think>ok")

    reply = post(http, [USER], **{name: value})

    if reply.status_code == 400:
        assert f"'{name}' is not supported" in reply.json()["error"]["message"]
    elif (name, value) != ("logprobs", False):
        assert reply.headers["x-quire-warning"] == f"unknown fields ignored: {name}"
        assert model.prompt == "[user] Hi;[assistant]"
        assert [block["type"] for block in reply.json()["content"]] == ["thinking", "text"]


def sentencepiece() -> TextTokenizer:
    """A token per character; the first space of a text is the word's mark, and not shown."""
    vocab = {c: at for at, c in enumerate(sorted({*string.printable, "▁"}))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([END])
    return TextTokenizer(backend.to_str().encode(), {"eos_token": END}, TEMPLATE)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_reply_that_goes_on_keeps_its_first_space(
    make: Callable[..., Model], http: httpx2.Client, goes_on: bool
) -> None:
    model = make("hermes")
    state = model.live.app.state
    state.served = dataclasses.replace(state.served, tokenizer=sentencepiece())
    eos = state.served.tokenizer.special_tokens[END]
    tokens = state.served.tokenizer.encode(" far", add_special_tokens=False)
    model.live.engine.script = lambda context: [*tokens, eos]
    state.served = dataclasses.replace(state.served, eos_token_ids=(eos,))
    messages = [USER, *([{"role": "assistant", "content": "So"}] if goes_on else [])]
    chat = {"messages": messages, "continue_final_message": goes_on}

    ours = post(http, messages).json()["content"][0]["text"]
    theirs = http.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]

    assert ours == theirs == (" far" if goes_on else "far")

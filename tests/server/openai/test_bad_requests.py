"""Every bad input is a 4xx that names the field, and reaches no engine."""

import threading
from typing import Any

import httpx2
import openai
import pytest
from pydantic import ValidationError

from quire.config.limits import LIMITS
from quire.pipelines.chat_template import ChatTemplate
from quire.server.openai import body
from quire.server.openai.schema import ChatCompletionRequest

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
INVALID, MISSING = "invalid_value", "missing_field"
UNSUPPORTED, TOO_LONG = "unsupported_parameter", "context_length_exceeded"
PARTS = [{"type": "text", "text": "a"}]

# (fields, param, code) of a completions request, added to {"prompt": "Hello"}.
COMPLETIONS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": None}, "prompt", MISSING),
    ({"prompt": ""}, "prompt", INVALID),
    ({"prompt": []}, "prompt", INVALID),
    ({"prompt": [""]}, "prompt", INVALID),
    ({"prompt": [[]]}, "prompt", INVALID),
    ({"prompt": ["a", 1]}, "prompt", INVALID),
    ({"prompt": [1, "a"]}, "prompt", INVALID),
    ({"prompt": [True]}, "prompt", INVALID),
    ({"prompt": [1.5]}, "prompt", INVALID),
    ({"prompt": 5}, "prompt", INVALID),
    ({"prompt": {"a": 1}}, "prompt", INVALID),
    ({"prompt": [-1]}, "prompt", INVALID),
    ({"prompt": [10**6]}, "prompt", INVALID),
    ({"prompt": [2**70]}, "prompt", INVALID),
    ({"prompt": [[4], [2**40]]}, "prompt", INVALID),
    ({"prompt": ["a"] * (LIMITS.prompts + 1)}, "prompt", INVALID),
    ({"prompt": ["a"] * 2, "n": 65}, "n", INVALID),
    ({"prompt": [5] * 256}, "prompt", TOO_LONG),
    ({"prompt": "word " * 4000}, "prompt", TOO_LONG),
    ({"prompt": "x" * 100_000}, "prompt", TOO_LONG),
    ({"prompt": [5] * 200, "max_tokens": 57}, "max_tokens", TOO_LONG),
    ({"max_tokens": 10**9}, "max_tokens", TOO_LONG),
    ({"max_tokens": 0}, "max_tokens", INVALID),
    ({"max_tokens": -1}, "max_tokens", INVALID),
    ({"max_tokens": "5"}, "max_tokens", INVALID),
    ({"max_tokens": 1.5}, "max_tokens", INVALID),
    ({"max_tokens": True}, "max_tokens", INVALID),
    ({"max_tokens": 2**64}, "max_tokens", INVALID),
    ({"min_tokens": -1}, "min_tokens", INVALID),
    ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", INVALID),
    ({"min_tokens": 17}, "min_tokens", INVALID),
    ({"prompt": [5] * 250, "min_tokens": 7}, "min_tokens", INVALID),
    ({"n": 0}, "n", INVALID),
    ({"n": 129}, "n", INVALID),
    ({"n": "1"}, "n", INVALID),
    ({"temperature": -0.1}, "temperature", INVALID),
    ({"temperature": 2.1}, "temperature", INVALID),
    ({"temperature": "1"}, "temperature", INVALID),
    ({"temperature": True}, "temperature", INVALID),
    ({"temperature": []}, "temperature", INVALID),
    ({"top_p": 0}, "top_p", INVALID),
    ({"top_p": 1.01}, "top_p", INVALID),
    ({"top_k": -2}, "top_k", INVALID),
    ({"top_k": 2**31}, "top_k", INVALID),
    ({"min_p": 1.5}, "min_p", INVALID),
    ({"repetition_penalty": 0}, "repetition_penalty", INVALID),
    ({"presence_penalty": 2.5}, "presence_penalty", INVALID),
    ({"frequency_penalty": -3}, "frequency_penalty", INVALID),
    ({"seed": 2**63}, "seed", INVALID),
    ({"seed": -(2**63) - 1}, "seed", INVALID),
    ({"seed": "a"}, "seed", INVALID),
    ({"stop": ""}, "stop.0", INVALID),
    ({"stop": ["a", ""]}, "stop.1", INVALID),
    ({"stop": ["a"] * 17}, "stop", INVALID),
    ({"stop": "x" * 257}, "stop.0", INVALID),
    ({"stop": [1]}, "stop.0", INVALID),
    ({"stop": 5}, "stop", INVALID),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0", INVALID),
    ({"stop_token_ids": [10**6]}, "stop_token_ids", INVALID),
    ({"stop_token_ids": [5] * 129}, "stop_token_ids", INVALID),
    ({"logprobs": 21}, "logprobs", INVALID),
    ({"logprobs": -1}, "logprobs", INVALID),
    ({"logprobs": True}, "logprobs", INVALID),
    ({"echo": 1}, "echo", INVALID),
    ({"prompt_logprobs": 21}, "prompt_logprobs", INVALID),
    ({"prompt_logprobs": -1}, "prompt_logprobs", INVALID),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", INVALID),
    ({"stream": "yes"}, "stream", INVALID),
    ({"stream_options": {"include_usage": True}}, "stream_options", INVALID),
    ({"stream": True, "stream_options": 1}, "stream_options", INVALID),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        INVALID,
    ),
    ({"cache_salt": "é" * 33}, "cache_salt", INVALID),
    ({"cache_salt": ""}, "cache_salt", INVALID),
    ({"priority": 2**40}, "priority", INVALID),
    ({"user": 5}, "user", INVALID),
    ({"suffix": "b"}, "suffix", UNSUPPORTED),
    ({"best_of": 2}, "best_of", UNSUPPORTED),
    ({"best_of": True}, "best_of", UNSUPPORTED),
    ({"logit_bias": {"five": 1}}, "logit_bias", INVALID),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", INVALID),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5", INVALID),
    ({"logit_bias": {"99999": 1}}, "logit_bias", INVALID),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", INVALID),
    ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias", INVALID),
    ({"allowed_token_ids": []}, "allowed_token_ids", INVALID),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids.0", INVALID),
    ({"allowed_token_ids": [99999]}, "allowed_token_ids", INVALID),
    ({"allowed_token_ids": [2], "min_tokens": 1}, "allowed_token_ids", INVALID),
    (
        {"allowed_token_ids": [2, 9], "stop_token_ids": [9], "min_tokens": 1},
        "allowed_token_ids",
        INVALID,
    ),
    ({"guided_json": {}}, "guided_json", UNSUPPORTED),
    ({"guided_regex": "a"}, "guided_regex", UNSUPPORTED),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", INVALID),
    ({"structured_outputs": {}}, "structured_outputs.json", INVALID),
    (
        {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
        "structured_outputs.whitespace_pattern",
        UNSUPPORTED,
    ),
    *(
        ({"structured_outputs": {"json": text}}, "structured_outputs.json", INVALID)
        for text in (
            '{"items": ' * 900 + "{}" + "}" * 900,
            '{"const": ' + "[" * 500 + "]" * 500 + "}",
        )
    ),
    (
        {"structured_outputs": {"structural_tag": '{"a": ' * 300 + "1" + "}" * 300}},
        "structured_outputs.structural_tag",
        INVALID,
    ),
    ({"grammar": "root ::= x"}, "grammar", UNSUPPORTED),
    ({"response_format": {"type": "xml"}}, "response_format.type", INVALID),
    ({"use_beam_search": True}, "use_beam_search", UNSUPPORTED),
    ({"bad_words": [" "]}, "bad_words.0", INVALID),
    ({"bad_words": ["a"] * 129}, "bad_words", INVALID),
    ({"skip_special_tokens": 0}, "skip_special_tokens", INVALID),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", INVALID),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", INVALID),
    ({"truncation_side": "middle"}, "truncation_side", INVALID),
    ({"service_tier": "flex"}, "service_tier", UNSUPPORTED),
    ({"repeat_penalty": 1.1}, "repeat_penalty", UNSUPPORTED),
]

# The same for chat completions, added to CHAT.
CHATS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": None}, "messages", MISSING),
    ({"messages": []}, "messages", INVALID),
    ({"messages": "hi"}, "messages", INVALID),
    ({"messages": ["hi"]}, "messages.0", INVALID),
    ({"messages": [{"content": "a"}]}, "messages.0.role", MISSING),
    ({"messages": [{"role": "user"}]}, "messages.0.content", MISSING),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", MISSING),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", INVALID),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", INVALID),
    ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role", INVALID),
    ({"messages": [{"role": "user", "content": "a", "name": 5}]}, "messages.0.name", INVALID),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages.0.content.0.text",
        MISSING,
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [*PARTS, {"type": "image_url", "image_url": {"url": "x"}}],
                }
            ]
        },
        "messages.0.content.1.type",
        UNSUPPORTED,
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "messages.0.content.0.type",
        UNSUPPORTED,
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "smell", "text": "a"}]}]},
        "messages.0.content.0.type",
        INVALID,
    ),
    ({"messages": [{"role": "user", "content": "a"}] * 4097}, "messages", INVALID),
    ({"messages": [{"role": "user", "content": "x" * 100_000}]}, "messages", TOO_LONG),
    ({"messages": [{"role": "user", "content": "one two " * 300}]}, "messages", TOO_LONG),
    ({"max_tokens": 300}, "max_tokens", TOO_LONG),
    ({"max_completion_tokens": 300, "max_tokens": 5}, "max_completion_tokens", TOO_LONG),
    ({"max_completion_tokens": 0}, "max_completion_tokens", INVALID),
    ({"logprobs": 1}, "logprobs", INVALID),
    ({"top_logprobs": 2}, "top_logprobs", INVALID),
    ({"logprobs": False, "top_logprobs": 0}, "top_logprobs", INVALID),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", INVALID),
    (
        {"chat_template_kwargs": {"enable_thinking": True}},
        "chat_template_kwargs",
        INVALID,
    ),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", INVALID),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs", INVALID),
    ({"chat_template": "{{ x }}"}, "chat_template", UNSUPPORTED),
    ({"functions": [{}]}, "functions", UNSUPPORTED),
    ({"modalities": ["text", "audio"]}, "modalities", UNSUPPORTED),
    ({"audio": {"voice": "x"}}, "audio", UNSUPPORTED),
    ({"prediction": {"type": "content"}}, "prediction", UNSUPPORTED),
    ({"web_search_options": {}}, "web_search_options", UNSUPPORTED),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        INVALID,
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", INVALID),
]

# Bodies that are not what they should be: (bytes, code).
RAW: list[tuple[bytes, str | None]] = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"not json", "invalid_json"),
    (b'{"prompt": "a",}', "invalid_json"),
    (b'{"prompt": "a", "temperature": NaN}', "invalid_json"),
    (b'{"prompt": "a", "temperature": Infinity}', "invalid_json"),
    (b'{"prompt": "a", "temperature": -Infinity}', "invalid_json"),
    (b'{"prompt": "a", "temperature": 1e999}', "invalid_json"),
    (b'{"prompt": "\\ud800"}', "invalid_json"),
    (b'{"prompt": "\xff"}', "invalid_json"),
    (b'\xef\xbb\xbf{"prompt": "a"}', "invalid_json"),
    (b'{"prompt": "a"} x', "invalid_json"),
    (b"[" * 100_000, "invalid_json"),
    (b"[]", None),
    (b'"text"', None),
    (b"null", None),
    (b"5", None),
    (b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", "invalid_json"),
]


def check(reply: httpx2.Response, status: int, param: str | None, code: str | None) -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert len(error["message"]) < 400
    assert "x-request-id" in reply.headers


@pytest.mark.parametrize(("fields", "param", "code"), COMPLETIONS)
def test_bad_completions(
    live: Any, http: httpx2.Client, fields: dict[str, Any], param: str, code: str
) -> None:
    reply = http.post("/v1/completions", json={"prompt": "Hello", **fields})

    check(reply, 400, param, code)
    assert f"'{param}'" in reply.json()["error"]["message"]
    assert live.engine.streams == []


@pytest.mark.parametrize(("fields", "param", "code"), CHATS)
def test_bad_chats(
    live: Any, http: httpx2.Client, fields: dict[str, Any], param: str, code: str
) -> None:
    reply = http.post("/v1/chat/completions", json={**CHAT, **fields})

    check(reply, 400, param, code)
    assert f"'{param}'" in reply.json()["error"]["message"]
    assert live.engine.streams == []


@pytest.mark.parametrize(("raw", "code"), RAW)
def test_bad_bodies(live: Any, http: httpx2.Client, raw: bytes, code: str | None) -> None:
    headers = {"content-type": "application/json"}
    reply = http.post("/v1/completions", content=raw, headers=headers)

    check(reply, 400, None, code)


@pytest.mark.parametrize(
    "value", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""]
)
def test_other_media_types_are_refused(live: Any, http: httpx2.Client, value: str) -> None:
    headers = {"content-type": value}
    reply = http.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)

    check(reply, 415, None, "unsupported_media_type")


@pytest.mark.parametrize("value", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_media_types_are_accepted(live: Any, http: httpx2.Client, value: str) -> None:
    headers = {"content-type": value}
    reply = http.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)

    assert reply.status_code == 200


@pytest.mark.parametrize("model", ["gpt-4", "", "tiny ", "../tiny"])
def test_unknown_models_are_not_found(live: Any, http: httpx2.Client, model: str) -> None:
    reply = http.post("/v1/completions", json={"prompt": "a", "model": model})

    check(reply, 404, "model", "model_not_found")
    assert "'tiny', 'tiny-alias'" in reply.json()["error"]["message"]


def test_limits_and_given_values_are_in_the_message(live: Any, http: httpx2.Client) -> None:
    def message(**fields: Any) -> str:
        reply = http.post("/v1/completions", json={"prompt": [5] * 200, **fields})
        text = reply.json()["error"]["message"]
        assert isinstance(text, str)
        return text

    assert message(temperature=3) == ("'temperature' should be less than or equal to 2 (given: 3)")
    assert message(prompt=[5] * 256) == (
        "This model's maximum context length is 256 tokens, but 'prompt' has 256 tokens, "
        "which leaves no room to generate"
    )
    assert message(max_tokens=100) == (
        "This model's maximum context length is 256 tokens, but 300 were requested "
        "(200 in 'prompt', 100 in 'max_tokens'); at most 56 can be generated"
    )
    assert message(prompt="x" * 100_000).startswith(
        "This model's maximum context length is 256 tokens, but 'prompt' has at least "
    )
    assert message(prompt=[999]) == (
        f"'prompt': token ids must be between 0 and {live.tokenizer.vocab_size - 1}, not 999"
    )
    assert message(prompt="a", suffix="x").startswith("'suffix' is not supported: ")


@pytest.mark.parametrize(
    "messages", [[5] * 1000, [{"role": "user", "content": [1] * 1000}]], ids=["messages", "parts"]
)
def test_a_list_of_errors_is_judged_by_its_first(messages: list[Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate({"messages": messages})

    assert caught.value.error_count() == 1


def test_large_bodies_are_checked_off_the_event_loop(
    live: Any, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    parse = body.parse
    monkeypatch.setattr(
        body, "parse", lambda *args: threads.append(threading.get_ident()) or parse(*args)
    )

    for size in (10, 10, body.LARGE_BODY_BYTES):
        http.post("/v1/completions", json={"prompt": "Hello", "user": "x" * size})

    assert threads[0] == threads[1] != threads[2]


def test_model_without_a_template_refuses_chats(
    live: Any, http: httpx2.Client, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.tokenizer, "chat_template", None)

    check(http.post("/v1/chat/completions", json=CHAT), 400, "messages", None)


def test_refusals_of_the_template_are_400(
    live: Any, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatTemplate("{{ raise_exception('only\nusers') }}", {})
    monkeypatch.setattr(live.tokenizer, "chat_template", template)

    reply = http.post("/v1/chat/completions", json=CHAT)

    check(reply, 400, "messages", INVALID)
    assert reply.json()["error"]["message"] == "'messages': only users"


def test_sdk_raises_its_own_error(live: Any, sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model="tiny", prompt="a", temperature=3)

    assert caught.value.param == "temperature"
    assert caught.value.code == INVALID

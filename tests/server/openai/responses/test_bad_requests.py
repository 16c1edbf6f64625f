"""What is refused, by the name that the client gave it; and that nothing makes a 500."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tool_models import Model

from quire.config.limits import LIMITS
from quire.config.settings import ServeSettings
from quire.server.openai.responses.known_fields import RESPONSES
from quire.server.openai.responses.schema import ResponsesRequest

USER = {"role": "user", "content": "a"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
LOGPROBS = "message.output_text.logprobs"

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": 5}, "input"),
    ({"input": []}, "input"),
    ({"input": [USER] * (LIMITS.messages + 1)}, "input"),
    ({"input": ["a"]}, "input.0"),
    ({"input": [{"content": "a"}]}, "input.0.role"),
    ({"input": [USER, {"role": "tool", "content": "a"}]}, "input.1.role"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    ({"input": [USER, {"role": "user", "content": [{"type": "input_text"}]}]}, "input.1.content.0.text"),
    ({"input": [USER, {"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "input.1.content.0.type"),
    ({"input": [USER, {"role": "user", "content": [5]}]}, "input.1.content.0"),
    ({"input": [{**CALL, "arguments": {}}]}, "input.0.arguments"),
    ({"input": [{**CALL, "name": None}]}, "input.0.name"),
    ({"input": [{**CALL, "status": "done"}]}, "input.0.status"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": 3}]}, "input.0.output"),
    ({"input": [{"type": "reasoning", "content": "a"}]}, "input.0.content"),
    ({"input": [{"type": "reasoning", "summary": [{"type": "x", "text": "a"}]}]}, "input.0.summary.0.type"),
    ({"instructions": ["a"]}, "instructions"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": "5"}, "max_output_tokens"),
    ({"max_output_tokens": 100_000}, "max_output_tokens"),
    ({"max_output_tokens": 5, "min_tokens": 6}, "min_tokens"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"top_logprobs": 3, "include": ["reasoning.encrypted_content"]}, "top_logprobs"),
    ({"top_logprobs": 21, "include": [LOGPROBS]}, "top_logprobs"),
    ({"include": LOGPROBS}, "include"),
    ({"include": [5]}, "include.0"),
    ({"metadata": {"a": 5}}, "metadata.a"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"metadata": {"a": "b" * 513}}, "metadata.a"),
    ({"user": 5}, "user"),
    ({"prompt_cache_retention": 5}, "prompt_cache_retention"),
    ({"store": "yes"}, "store"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": 3}}, "stream_options.include_obfuscation"),
    ({"previous_response_id": 5}, "previous_response_id"),
    ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": 5}}}}, "text.format.schema"),
    ({"text": {"verbosity": "some"}}, "text.verbosity"),
    ({"tools": [{"type": "function"}]}, "tools.0.name"),
    ({"tools": [{"name": "f"}]}, "tools.0.type"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools.0.name"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "some"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": [{"type": "function", "name": "f"}]}}, "tool_choice.mode"),
    ({"chat_template_kwargs": {"whisper": True}}, "chat_template_kwargs"),
    ({"model": "other"}, "model"),
    ({"timeout": 0}, "timeout"),
]  # fmt: skip

UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.type"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input.0.type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0.type"),
    ({"input": [{"type": "reasoning", "encrypted_content": "gAAA"}]}, "input.0.encrypted_content"),
    ({"input": [{**CALL, "namespace": "a"}]}, "input.0.namespace"),
    ({"include": [LOGPROBS, "file_search_call.results"]}, "include.1"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"messages": [USER]}, "messages"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"n": 2}, "n"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"reasoning": {"generate_summary": "concise"}}, "reasoning.generate_summary"),
    ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "tools.0.defer_loading"),
    ({"tools": [TOOL]}, "tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"guided_json": {}}, "guided_json"),
    ({"maxOutputTokens": 5}, "maxOutputTokens"),
    ({"json_shema": {}}, "json_shema"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_wrong_fields_are_named(
    live: Any, http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    reply = http.post("/v1/responses", json={"input": "a", **fields})

    assert reply.status_code == (404 if param == "model" else 400), reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].split(".[key]")[0] == param
    assert error["code"] != "unsupported_parameter"
    # Two messages are OpenAI's own.
    assert param in error["message"] or param in ("model", "previous_response_id")
    assert not live.engine.streams


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED)
def test_what_is_not_served_is_named(
    live: Any, http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    reply = http.post("/v1/responses", json={"input": "a", **fields})

    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert error["message"].startswith(f"'{param}' is not supported")
    assert not live.engine.streams


def test_unknown_fields_are_told(live: Any, http: httpx2.Client) -> None:
    item = {**USER, "odd_schema": 1, "phase": "commentary"}
    reply = http.post("/v1/responses", json={"input": [item], "moderated": 1})

    assert reply.status_code == 200, reply.text
    warning = reply.headers["x-quire-warning"]
    assert warning == "unknown fields ignored: moderated, input.0.odd_schema"
    state = live.app.state
    before, state.settings = state.settings, ServeSettings(strict=True)
    refused = http.post("/v1/responses", json={"input": [item]})
    state.settings = before
    assert refused.json()["error"]["param"] == "input.0.odd_schema"


def test_a_strict_schema_that_cannot_be_enforced(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    make("hermes").says("ok")
    schema = {"type": "object", "patternProperties": {}}
    tool = {"type": "function", "name": "f", "parameters": schema}
    loose = http.post("/v1/responses", json={"input": "a", "tools": [tool]})
    strict = http.post("/v1/responses", json={"input": "a", "tools": [{**tool, "strict": True}]})

    assert "tools.0.parameters not enforced" in loose.headers["x-quire-warning"]
    error = strict.json()["error"]
    assert error["param"] == "tools.0.parameters"
    assert error["message"].startswith("'tools.0.parameters'")


def test_broken_histories_are_told_by_their_items(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    make("hermes").says("ok")
    items = [USER, {**CALL, "arguments": "{"}, {"type": "function_call_output", "output": "x"}]
    first = http.post("/v1/responses", json={"input": items, "instructions": "Be kind."})
    body = {"input": "b", "previous_response_id": first.json()["id"]}
    second = http.post("/v1/responses", json=body)

    assert first.headers["x-quire-warning"].split("; ") == [
        "input.1.arguments is no JSON object",
        "input.2 answers no tool call of this conversation",
    ]
    assert second.headers["x-quire-warning"].startswith("item fc_")


def test_too_much_input_in_a_chain(live: Any, http: httpx2.Client) -> None:
    """As much as one body may bring, since all of it is read at once."""
    state = live.app.state
    body: dict[str, Any] = {"input": [*[{**USER, "content": "x" * 400}] * 3, USER]}
    body |= {"truncation": "auto", "max_output_tokens": 1}
    first = http.post("/v1/responses", json=body).json()
    body["previous_response_id"] = first["id"]
    second = http.post("/v1/responses", json=body).json()
    before, state.settings = state.settings, ServeSettings(max_request_bytes=3000)
    replies = [
        http.post("/v1/responses", json={**body, "previous_response_id": id, "input": "a"})
        for id in (first["id"], second["id"])
    ]
    state.settings = before

    assert [reply.status_code for reply in replies] == [200, 400]
    error = replies[1].json()["error"]
    assert error["param"] == "previous_response_id"
    assert "the limit is 3000 (max_request_bytes)" in error["message"]


def test_too_many_items_in_a_chain(
    live: Any, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = http.post("/v1/responses", json={"input": [USER] * 3, "max_output_tokens": 1}).json()
    monkeypatch.setattr("quire.server.openai.responses.create.LIMITS", type(LIMITS)(messages=5))
    body = {"previous_response_id": first["id"], "input": [USER]}
    assert http.post("/v1/responses", json=body).status_code == 200
    reply = http.post("/v1/responses", json={**body, "input": [USER, USER]})

    assert reply.status_code == 400
    assert "6 items; the limit is 5" in reply.json()["error"]["message"]


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["user", "input_text", "function", "function_call", "auto", "json_schema"])
)
NAMES = ["type", "role", "content", "text", "name", "call_id", "output", "format", "schema", "x"]
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=10,
)
FIELDS = sorted({*ResponsesRequest.model_fields, *RESPONSES, "prompt_cache_options", "odd"})


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))
def test_no_json_makes_a_500(live: Any, http: httpx2.Client, fields: dict[str, Any]) -> None:
    body = orjson.dumps({"input": "Hello", **fields})
    reply = http.post("/v1/responses", content=body, headers={"content-type": "application/json"})

    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert error["message"] and error["type"] == "invalid_request_error"
        assert error["param"].split(".")[0] in json.loads(body)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    items=st.lists(
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(
                    ["message", "function_call", "function_call_output", "reasoning"]
                )
            },
            optional={
                "role": st.sampled_from(["user", "assistant", "system", "tool"]),
                "content": st.text(max_size=5) | values,
                "call_id": st.sampled_from(["a", "b"]) | values,
                "name": st.text(max_size=5) | values,
                "arguments": st.sampled_from(["{}", "{", "[]"]) | values,
                "output": st.text(max_size=5) | values,
                "summary": values,
            },
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_items_make_a_500(live: Any, http: httpx2.Client, items: Any) -> None:
    reply = http.post("/v1/responses", json={"input": items})

    assert reply.status_code in (200, 400), reply.text

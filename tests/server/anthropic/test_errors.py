"""Errors have Anthropic's form on every path under /v1/messages, and name the field at fault."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import ErrorResponse
from starlette.types import Receive, Scope, Send
from tool_models import Model

from quire.config.limits import LIMITS
from quire.config.settings import ServeSettings
from quire.server.auth import AuthMiddleware, load_api_keys
from quire.server.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    GenerationFailed,
    InternalError,
    Overloaded,
)

USER: Any = {"role": "user", "content": "Hi"}
BODY: Any = {"model": "tiny", "max_tokens": 5, "messages": [USER]}
KEYS = "ann:ann-key\nbob:bob-key\n"


def checked(reply: httpx2.Response, status: int, kind: str) -> str:
    assert reply.status_code == status, reply.text
    body = reply.json()
    if kind != "request_too_large":  # documented, and not among the client's types
        ErrorResponse.model_validate(body)
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    message: str = body["error"]["message"]
    return message


def messages(*contents: Any) -> Any:
    """Turns of the user and of the assistant, one after the other."""
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]


USE: Any = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT: Any = {"type": "tool_result", "tool_use_id": "t1", "content": "x"}
TOOL: Any = {"name": "f", "input_schema": {"type": "object"}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": messages([])}, "messages.0.content"),
    ({"messages": messages([{"type": "text"}])}, "messages.0.content.0.text"),
    ({"messages": messages([{"text": "a"}])}, "messages.0.content.0.type"),
    *(
        ({"messages": messages([{"type": kind}])}, "messages.0.content.0.type")
        for kind in ("image", "document", "redacted_thinking", "server_tool_use")
    ),
    ({"messages": messages([USE])}, "messages.0.content.0.type"),
    ({"messages": messages("a", [RESULT])}, "messages.1.content.0.type"),
    ({"messages": messages("a", [{**USE, "input": "x"}])}, "messages.1.content.0.input"),
    (
        {"messages": messages("a", [{**USE, "caller": {"type": "x"}}])},
        "messages.1.content.0.caller",
    ),
    ({"messages": messages("a", [USE])}, "messages.1"),
    ({"messages": messages("a", [USE], "b")}, "messages.2"),
    ({"messages": messages("a", [USE, USE], [RESULT])}, "messages.1"),
    ({"messages": messages("a", [USE], [RESULT], [USE], [RESULT])}, "messages.3"),
    ({"messages": messages([RESULT])}, "messages.0"),
    ({"messages": messages("a", "b", [RESULT])}, "messages.2"),
    (
        {"messages": messages("a", [USE], [{**RESULT, "content": [{"type": "image"}]}])},
        "messages.2.content.0.content.0.type",
    ),
    ({"messages": messages("a", [{"type": "thinking", "thinking": "x"}])}, "messages"),
    ({"messages": [{"role": "assistant", "content": ""}]}, "messages"),
    ({"messages": messages([{"type": "text", "text": "a", "citations": [1]}])}, "citations"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 1.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system.0.type"),
    ({"stop_sequences": "a"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences.0"),
    ({"stop_sequences": ["a"] * (LIMITS.stop_strings + 1)}, "stop_sequences"),
    ({"stop": "a"}, "stop"),
    ({"n": 2}, "n"),
    ({"stream_options": {}}, "stream_options"),
    ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"metadata": 5}, "metadata"),
    ({"service_tier": "fast"}, "service_tier"),
    ({"container": "a"}, "container"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"context_management": {"edits": [{"type": "x"}]}}, "context_management"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"output_config": {"effort": "none"}}, "output_config.effort"),
    ({"output_config": {"task_budget": {}}}, "output_config.task_budget"),
    ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 5}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
    ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools.0.name"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "tools.0.defer_loading"),
    ({"tools": [{**TOOL, "input_examples": [{}]}]}, "tools.0.input_examples"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "any", "name": "f"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
    ({"guided_json": {}}, "guided_json"),
    ({"max_output_tokens": 5}, "max_output_tokens"),
]


@pytest.mark.parametrize(("fields", "name"), BAD, ids=lambda value: str(value)[:50])
def test_bad_input_is_named(
    make: Callable[..., Model], http: httpx2.Client, fields: Any, name: str
) -> None:
    model = make("hermes")

    reply = http.post("/v1/messages", json={**BODY, **fields})

    message = checked(reply, 400, "invalid_request_error")
    assert f"{name}'" in message
    assert model.live.engine.streams == []


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_errors_before_the_fields_are_read(live: Any, http: httpx2.Client, path: str) -> None:
    json = {"content-type": "application/json"}
    invalid = "invalid_request_error"

    checked(http.post(path, content=b"{", headers=json), 400, invalid)
    checked(http.post(path, content=b"{}", headers={"content-type": "text/plain"}), 415, invalid)
    big = b" " * (live.app.state.settings.max_request_bytes + 1)
    checked(http.post(path, content=big, headers=json), 413, "request_too_large")
    checked(http.get(path), 405, invalid)
    checked(http.post(f"{path}/more", json={}), 404, "not_found_error")
    message = checked(http.post(path, json={**BODY, "model": "other"}), 404, "not_found_error")
    assert "'tiny'" in message


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Overloaded("The queue is full", 1.5), 429, "rate_limit_error"),
        (EngineUnavailable("Not ready", 1.5), 503, "overloaded_error"),
        (GenerationFailed("It failed"), 500, "api_error"),
        (InternalError("It broke"), 500, "api_error"),
        (DeadlineExceeded(1.0), 504, "timeout_error"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_errors_of_the_engine(
    live: Any, http: httpx2.Client, error: Any, status: int, kind: str, is_stream: bool
) -> None:
    live.engine.refusal = error

    reply = http.post("/v1/messages", json={**BODY, "stream": is_stream})

    checked(reply, status, kind)
    assert ("retry-after" in reply.headers) is (status in (429, 503))


def test_a_thread_is_refused_so_that_the_client_goes_on_without(
    live: Any, http: httpx2.Client
) -> None:
    body = http.post("/v1/messages", json={**BODY, "thread": {"type": "create"}}).json()

    assert body["error"]["details"]["error_code"] == "thread_unsupported_request"


@pytest.fixture(scope="module")
def closed(make_daemon: Callable[..., Any], serve: Callable[..., Any]) -> Iterator[str]:
    """A server that asks for keys."""
    yield f"http://127.0.0.1:{serve(make_daemon(keys=KEYS).app).port}"


def test_either_header_opens(closed: str) -> None:
    for headers in (
        {"x-api-key": "ann-key"},
        {"authorization": "Bearer ann-key"},
        {"authorization": "Bearer of-elsewhere", "x-api-key": "ann-key"},
    ):
        reply = httpx2.post(f"{closed}/v1/messages", json=BODY, headers=headers)
        checked(reply, 503, "overloaded_error")
    for headers in ({}, {"x-api-key": "wrong"}):
        reply = httpx2.post(f"{closed}/v1/messages", json=BODY, headers=headers)
        checked(reply, 401, "authentication_error")


def test_the_client_s_keys(closed: str) -> None:
    for credentials in ({"api_key": "bob-key"}, {"auth_token": "bob-key"}):
        with (
            anthropic.Anthropic(base_url=closed, max_retries=0, **credentials) as client,
            pytest.raises(anthropic.APIStatusError) as found,
        ):
            client.messages.create(**BODY)
        assert (found.value.status_code, found.value.type) == (503, "overloaded_error")
    with (
        anthropic.Anthropic(base_url=closed, max_retries=0, api_key="x") as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        client.messages.create(**BODY)


async def test_of_two_keys_authorization_says_whose_the_request_is(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(KEYS)
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    headers = [(b"x-api-key", b"ann-key"), (b"authorization", b"Bearer bob-key")]
    keys = load_api_keys(ServeSettings(api_key_file=path))
    scope: Any = {"type": "http", "path": "/v1/messages", "headers": headers}
    await AuthMiddleware(app, keys)(scope, None, None)  # type: ignore[arg-type]

    assert seen[0]["quire.caller"].name == "bob"

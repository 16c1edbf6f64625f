"""Names that nobody knows: told, refused in strict mode, and always refused as constraints."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from quire.config.settings import ServeSettings
from quire.server.openai.conversation import TextPart

HARMLESS_NAMES = ["verbosity", "moderation", "odd", "temprature", "provider", "x_trace", "seeds"]
# name -> what the answer says
CONSTRAINTS = {
    "responseFormat": "did you mean 'response_format'?",
    "response_fromat": "did you mean 'response_format'?",
    "respons_format": "did you mean 'response_format'?",
    "structured_output": "did you mean 'structured_outputs'?",
    "maxTokens": "did you mean 'max_tokens'?",
    "max_token": "did you mean 'max_tokens'?",
    "logitBias": "did you mean 'logit_bias'?",
    "Stop": "did you mean 'stop'?",
    "stop_words": "looks like a constraint",
    "stop_sequences": "looks like a constraint",
    "max_output_tokens": "looks like a constraint",
    "max_length": "looks like a constraint",
    "num_predict": "looks like a constraint",
    "guided_xml": "looks like a constraint",
    "jsonSchema": "looks like a constraint",
    "output_schema": "looks like a constraint",
    "regexp": "looks like a constraint",
    "gbnf": "looks like a constraint",
    "lark_grammar": "looks like a constraint",
    "banned_strings": "looks like a constraint",
    "suppress_tokens": "looks like a constraint",
    "format": "looks like a constraint",
    "constraints": "looks like a constraint",
    "extra_body": "belong at the top level",
    "sampling_params": "belong at the top level",
    "options": "belong at the top level",
}


@pytest.fixture
def strict(live: Any) -> Iterator[None]:
    state, before = live.app.state, live.app.state.settings
    state.settings = ServeSettings(strict=True)
    yield
    state.settings = before


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_other_names_are_warned_about(live: Any, http: httpx2.Client, name: str) -> None:
    reply = http.post("/v1/completions", json={"prompt": "a", name: 1})

    assert reply.status_code == 200, reply.text
    assert reply.headers["x-quire-warning"] == f"unknown fields ignored: {name}"


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_what_looks_like_a_constraint_is_refused(live: Any, http: httpx2.Client, name: str) -> None:
    reply = http.post("/v1/completions", json={"prompt": "a", name: {"a": 1}})

    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "unsupported_parameter"), error
    assert error["param"] == name
    assert CONSTRAINTS[name] in error["message"]
    assert live.engine.streams == []


def test_null_asks_for_no_constraint(live: Any, http: httpx2.Client) -> None:
    assert http.post("/v1/completions", json={"prompt": "a", "guided_xml": None}).status_code == 200


def test_constraints_are_looked_for_in_nested_objects_too(live: Any, http: httpx2.Client) -> None:
    nested = {"type": "json_object", "json_schema_ref": "x"}
    reply = http.post("/v1/completions", json={"prompt": "a", "response_format": nested})

    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "response_format.json_schema_ref"


def test_a_message_s_own_fields_are_no_constraints(live: Any, http: httpx2.Client) -> None:
    messages = [{"role": "user", "content": "a", "format": "markdown"}]
    reply = http.post("/v1/chat/completions", json={"messages": messages})

    assert reply.status_code == 200
    assert "messages.0.format" in reply.headers["x-quire-warning"]


def test_where_nothing_is_generated_a_constraint_is_a_name_like_others(
    live: Any, http: httpx2.Client
) -> None:
    reply = http.post("/tokenize", json={"prompt": "a", "max_tokens": 5, "guided_xml": 1})

    assert reply.status_code == 200
    assert reply.headers["x-quire-warning"].endswith(": max_tokens, guided_xml")


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "odd": 1}, "odd"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a", "mood": 1}]},
            "messages.0.mood",
        ),
        ("/tokenize", {"prompt": "a", "odd": 1}, "odd"),
        ("/invocations", {"prompt": "a", "odd": 1}, "odd"),
    ],
)
def test_strict_mode_refuses_every_unknown_name(
    live: Any, http: httpx2.Client, strict: None, route: str, body: dict[str, Any], param: str
) -> None:
    reply = http.post(route, json=body)

    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "unsupported_parameter"), error
    assert error["param"] == param


def test_strict_mode_lets_known_names_pass(live: Any, http: httpx2.Client, strict: None) -> None:
    body = {"prompt": "a", "user": "x", "best_of": 1, "metadata": {"odd": 1}, "seed": None}

    assert http.post("/v1/completions", json=body).status_code == 200


def test_an_endless_list_of_names_is_not_compared(live: Any, http: httpx2.Client) -> None:
    body = {"prompt": "a", **{f"respond{index}": 1 for index in range(100_000)}}

    reply = http.post("/v1/completions", json=body)

    assert reply.status_code == 400
    assert reply.elapsed.total_seconds() < 5


def test_the_fields_of_a_large_body_are_walked_once_and_off_the_loop(
    live: Any, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[bool] = []
    walk = TextPart.unknown_fields

    def noted(part: TextPart, path: str) -> Iterator[str]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            walks.append(True)
        else:
            walks.append(False)
        return walk(part, path)

    monkeypatch.setattr(TextPart, "unknown_fields", noted)
    part = {"type": "text", "text": "a", "mood": "x" * 20_000}
    body = {"messages": [{"role": "user", "content": [part] * 4}]}
    reply = http.post("/tokenize", json=body)

    assert reply.headers["x-quire-warning"].count("mood") == 4
    assert walks == [True] * 4


def test_the_name_that_was_meant_is_one_of_this_route(live: Any, http: httpx2.Client) -> None:
    message = {"role": "user", "content": "a"}
    for route, body, name in (
        ("responses", {"input": "a"}, "max_output_tokens"),
        ("chat/completions", {"messages": [message]}, "max_tokens"),
    ):
        reply = http.post(f"/v1/{route}", json={**body, "max_out_tokens": 5})
        assert f"did you mean '{name}'?" in reply.json()["error"]["message"]

"""Every row of the table of limits: at the limit it passes, above it is refused by name."""

import dataclasses
from typing import Any

import httpx2
import orjson
import pytest

from quire.config.limits import LIMITS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f"}}


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# limit -> route, fields above it, the field that the answer names, the value it tells.
BROKEN: dict[str, tuple[str, dict[str, Any], str, int | float]] = {
    "prompts": (COMPLETIONS, {"prompt": ["a"] * 33}, "prompt", 33),
    "embedding_inputs": ("/v1/embeddings", {"input": ["a"] * 2049}, "input", 2049),
    "choices": (COMPLETIONS, {"prompt": ["a"] * 2, "n": 65}, "n", 130),
    "n": (COMPLETIONS, {"n": 129}, "n", 129),
    "messages": (CHAT, {"messages": [USER] * 4097}, "messages", 4097),
    "tools": (CHAT, {"tools": [TOOL] * 257}, "tools", 257),
    "stop_strings": (COMPLETIONS, {"stop": ["a"] * 17}, "stop", 17),
    "stop_string_chars": (COMPLETIONS, {"stop": ["a" * 257]}, "stop.0", 256),
    "stop_token_ids": (COMPLETIONS, {"stop_token_ids": [5] * 129}, "stop_token_ids", 129),
    "detokenize_tokens": ("/detokenize", {"tokens": [5] * 1_000_001}, "tokens", 1_000_001),
    "logit_bias": (
        COMPLETIONS,
        {"logit_bias": {str(token): 1 for token in range(1025)}},
        "logit_bias",
        1025,
    ),
    "allowed_token_ids": (
        COMPLETIONS,
        {"allowed_token_ids": [5] * 16385},
        "allowed_token_ids",
        16385,
    ),
    "bad_words": (COMPLETIONS, {"bad_words": ["a"] * 129}, "bad_words", 129),
    "bad_word_chars": (COMPLETIONS, {"bad_words": ["a" * 257]}, "bad_words.0", 256),
    "logprobs": (COMPLETIONS, {"logprobs": 21}, "logprobs", 21),
    "logprob_cells": (
        COMPLETIONS,
        {"prompt": [[5] * 250] * 2, "prompt_logprobs": 20, "n": 64, "max_tokens": 1, "echo": True},
        "prompt_logprobs",
        672_000,
    ),
    "grammar_bytes": (
        COMPLETIONS,
        {"structured_outputs": {"json": {"title": "a" * 262_144}}},
        "structured_outputs.json",
        262_156,
    ),
    "choices_of_text": (
        COMPLETIONS,
        {"structured_outputs": {"choice": ["a"] * 4097}},
        "structured_outputs.choice",
        4097,
    ),
    "json_depth": (COMPLETIONS, {"metadata": {"x": _nested(64)}}, "metadata", 66),
    "priority": (COMPLETIONS, {"priority": 101}, "priority", 101),
    "cache_salt_bytes": (COMPLETIONS, {"cache_salt": "a" * 65}, "cache_salt", 65),
    "timeout_seconds": (COMPLETIONS, {"timeout": 86401}, "timeout", 86401),
    "unknown_fields": (
        COMPLETIONS,
        {f"odd{index}": 1 for index in range(129)},
        "odd128",
        128,
    ),
}
ELSEWHERE = {
    "embedding_values": "needs a model that makes embeddings (test_embeddings.py)",
    "compiled_grammar_bytes": "test_structured.py (e2e), test_grammars.py",
    "grammar_seconds": "test_grammars.py",
    **dict.fromkeys(
        ("batch_lines", "batch_errors", "unfinished_batches", "custom_id_chars", "metadata_pairs")
        + ("metadata_key_chars", "metadata_value_chars", "min_expiry_seconds"),
        "batches/test_batches.py",
    ),
    **dict.fromkeys(
        ("filename_chars", "form_field_bytes", "form_fields", "max_expiry_seconds")
        + ("min_upload_bytes_per_second",),
        "batches/test_files.py",
    ),
    "request_id_chars": "a label: a longer one is replaced (test_app.py)",
    "header_bytes": "431 (test_http_protocol.py)",
    "headers": "431 (test_http_protocol.py)",
    "unsent_bytes": "holds the stream back, refuses nothing (test_http_protocol.py)",
}


def _body(route: str, fields: dict[str, Any]) -> dict[str, Any]:
    base = {CHAT: {"messages": [USER]}, COMPLETIONS: {"prompt": "Hello"}}.get(route, {})
    return {**base, **fields}


def test_every_limit_has_a_row_here() -> None:
    names = {field.name for field in dataclasses.fields(LIMITS)}
    assert names == {*BROKEN, *ELSEWHERE}


@pytest.mark.parametrize("name", BROKEN)
def test_above_a_limit_is_a_400_that_names_field_limit_and_value(
    live: Any, http: httpx2.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    route, fields, param, given = BROKEN[name]
    limit = getattr(LIMITS, name)
    if name == "logprob_cells":
        # What breaks the real one is more than the test's model can hold.
        limit = 600_000
        changed = dataclasses.replace(LIMITS, logprob_cells=limit)
        monkeypatch.setattr("quire.server.openai.admission.LIMITS", changed)

    body = orjson.dumps(_body(route, fields))
    reply = http.post(route, content=body, headers={"content-type": "application/json"})

    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert f"'{param}'" in error["message"]
    numbers = error["message"].replace(",", "")
    assert str(int(limit)) in numbers and str(given) in numbers, error["message"]
    assert live.engine.streams == []


@pytest.mark.parametrize(
    ("raw", "param", "levels"),
    [
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "a", 1000),
        (b'{"prompt": "a", "metadata": ' + b"[" * 64 + b"]" * 64 + b"}", "metadata", 65),
    ],
)
def test_too_deep_bodies(
    live: Any, http: httpx2.Client, raw: bytes, param: str, levels: int
) -> None:
    headers = {"content-type": "application/json"}
    reply = http.post("/v1/completions", content=raw, headers=headers)

    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, "invalid_value")
    assert error["message"] == (
        f"'{param}': the body is nested {levels} levels deep; the limit is {LIMITS.json_depth}"
    )


def test_the_body_limit_is_a_413_that_names_it_and_the_value(
    live: Any, http: httpx2.Client
) -> None:
    size = live.app.state.settings.max_request_bytes
    reply = http.post(COMPLETIONS, content=b" " * (size + 1))

    assert reply.status_code == 413
    message = reply.json()["error"]["message"]
    assert "max_request_bytes" in message and str(size) in message and str(size + 1) in message


def test_the_document_tells_every_limit(live: Any, http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()

    limits = document["info"]["x-limits"]
    assert limits == {
        "max_request_bytes": live.app.state.settings.max_request_bytes,
        "max_file_size": live.app.state.settings.max_file_size,
        **dataclasses.asdict(LIMITS),
    }


def test_the_document_bounds_the_fields_themselves(live: Any, http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]

    def field(route: str, name: str) -> str:
        content = paths[route]["post"]["requestBody"]["content"]["application/json"]
        return str(content["schema"]["properties"][name])

    for name, limit in {
        "n": LIMITS.n,
        "stop": LIMITS.stop_strings,
        "stop_token_ids": LIMITS.stop_token_ids,
        "logit_bias": LIMITS.logit_bias,
        "bad_words": LIMITS.bad_words,
        "prompt": LIMITS.prompts,
        "logprobs": LIMITS.logprobs,
    }.items():
        assert str(limit) in field(COMPLETIONS, name), name
    assert str(LIMITS.messages) in field(CHAT, "messages")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"K" * 100_000: "x"}}, "logit_bias.K"),
        ({"é" * 100_000 + ".options": 1}, "?"),
        ({"model": "K" * 100_000}, "model"),
    ],
    ids=["a key", "a name", "a value"],
)
def test_what_an_error_quotes_is_cut(
    live: Any, http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    reply = http.post("/v1/completions", json={"prompt": "Hello", **fields})

    assert 400 <= reply.status_code < 500
    assert reply.json()["error"]["param"].startswith(param)
    assert len(reply.content) < 8192

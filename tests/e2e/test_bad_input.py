"""A live daemon takes every bad input and serves on: same reply, same worker, nothing left behind."""

import json
import re
import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

# The same tables that judge the routes alone; they hold for models of 256 tokens.
TABLES = runpy.run_path(
    str(Path(__file__).parents[1] / "server" / "openai" / "test_bad_requests.py")
)
MAX_LENGTH = "256"
MAX_BYTES = 1024**2
GOOD = {"prompt": "One cold day", "max_tokens": 40, "temperature": 1.0, "seed": 5, "n": 2}
JSON = {"content-type": "application/json"}
BODY = b'{"prompt": "a", "max_tokens": 1}'
ERROR = "invalid_request_error"

# method, path, headers, body -> status, code
EXCHANGES: list[tuple[str, str, dict[str, str], bytes, int, str | None]] = [
    ("GET", "/nothing", {}, b"", 404, "not_found"),
    ("GET", "/v1/models/nope", {}, b"", 404, "model_not_found"),
    ("POST", "/v1/completion", JSON, BODY, 404, "not_found"),
    ("POST", "/v1/completions/", JSON, BODY, 404, "not_found"),
    ("GET", "/v1/completions", {}, b"", 405, "method_not_allowed"),
    ("DELETE", "/v1/models", {}, b"", 405, "method_not_allowed"),
    ("POST", "/livez", JSON, BODY, 405, "method_not_allowed"),
    (
        "POST",
        "/v1/completions",
        {"content-type": "text/plain"},
        BODY,
        415,
        "unsupported_media_type",
    ),
    ("POST", "/v1/completions", {}, BODY, 415, "unsupported_media_type"),
    (
        "POST",
        "/v1/completions",
        {**JSON, "content-encoding": "gzip"},
        BODY,
        415,
        "unsupported_media_type",
    ),
    ("POST", "/v1/completions", JSON, b" " * (MAX_BYTES + 1), 413, "payload_too_large"),
    ("POST", "/v1/completions", {**JSON, "host": "a/b"}, BODY, 400, None),
    ("POST", "/v1/completions", JSON, b'{"prompt": "a", "model": "x"}', 404, "model_not_found"),
]

# Bytes on a fresh connection -> status of the reply, None for none at all.
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
RAW: list[tuple[bytes, int | None]] = [
    (b"\x16\x03\x01\x02\x00\x01 not http\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", 400),
    (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (HEAD + b"Content-Length: 500\r\n\r\n" + BODY, None),
    (HEAD + b"Connection: close\r\nContent-Length: 3\r\n\r\n{}}", 400),
]


def good(server: Any) -> Any:
    reply = server.http.post("/v1/completions", json=GOOD)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"]


def judge(reply: httpx2.Response, expected: tuple[Any, ...]) -> str | None:
    """What is wrong with the reply, if anything."""
    try:
        error = reply.json()["error"]
        got = (reply.status_code, error["type"], error["param"], error["code"])
    except (ValueError, KeyError, TypeError):
        return f"no error body: {reply.status_code} {reply.text[:200]}"
    if got != expected:
        return f"got {got}, expected {expected}: {error['message']}"
    return None if "x-request-id" in reply.headers else "no x-request-id"


def wrong_fields(server: Any) -> list[str]:
    findings = []
    for path, base, table in (
        ("/v1/completions", {"prompt": "Hello"}, TABLES["COMPLETIONS"]),
        ("/v1/chat/completions", TABLES["CHAT"], TABLES["CHATS"]),
    ):
        for fields, param, code in table:
            for stream in ({}, {"stream": True}):
                if stream and ("stream" in fields or "stream_options" in fields):
                    continue
                reply = server.http.post(path, json={**base, **stream, **fields})
                finding = judge(reply, (400, ERROR, param, code))
                if finding:
                    findings.append(f"{json.dumps(fields)[:100]}: {finding}")
    return findings


def wrong_exchanges(server: Any) -> list[str]:
    findings = []
    for raw, code in TABLES["RAW"]:
        reply = server.http.post("/v1/completions", content=raw, headers=JSON)
        if finding := judge(reply, (400, ERROR, None, code)):
            findings.append(f"{raw[:60]!r}: {finding}")
    for method, path, headers, body, status, code in EXCHANGES:
        reply = server.http.request(method, path, headers=headers, content=body)
        param = "model" if code == "model_not_found" else None
        if finding := judge(reply, (status, ERROR, param, code)):
            findings.append(f"{method} {path} {headers}: {finding}")
    return findings


def wrong_connections(server: Any) -> list[str]:
    findings = []
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    for raw, status in RAW:
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(raw)
            if status is None:
                connection.shutdown(socket.SHUT_WR)
            received = connection.recv(65536)
        found = re.match(rb"HTTP/1.1 (\d{3}) ", received)
        if (int(found[1]) if found else None) != status:
            findings.append(f"{raw[:80]!r}: {received[:80]!r}, expected {status}")
    return findings


@pytest.mark.parametrize("wrong", [wrong_fields, wrong_exchanges, wrong_connections])
def test_bad_input_is_refused_and_changes_nothing(
    bad_input_server: Any, wrong: Callable[[Any], list[str]]
) -> None:
    server = bad_input_server
    before, worker = good(server), server.worker().pid

    findings = wrong(server)

    assert not findings, "\n".join(findings)
    assert good(server) == before
    assert server.worker().pid == worker
    server.wait_idle()
    assert "Traceback" not in server.log
    assert " ERROR " not in server.log


@pytest.fixture(scope="module")
def bad_input_server(launch: Callable[..., Any]) -> Any:
    server = launch("--max-length", MAX_LENGTH, "--max-request-bytes", str(MAX_BYTES))
    server.wait_ready()
    return server

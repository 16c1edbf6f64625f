"""The layers around every endpoint, over real sockets."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from quire.config.limits import LIMITS
from quire.server.errors import InvalidRequest, Overloaded
from quire.server.metrics import Metrics
from quire.server.middleware import BodyMiddleware, RequestMiddleware

LIMIT = 4096


class Typed(BaseModel):
    count: int


async def _echo(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body())})


async def _typed(body: Typed) -> Response:
    return JSONResponse({"count": body.count})


async def _boom() -> Response:
    raise RuntimeError("secret detail")


async def _surrogate() -> Response:
    raise InvalidRequest("bad text: \ud800\r\nx", param="prompt")


async def _overloaded() -> Response:
    raise Overloaded("The queue is full", 2.5)


async def _breaking() -> Response:
    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        raise RuntimeError("late")

    return StreamingResponse(events(), media_type="text/event-stream")


async def _endless() -> Response:
    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: 1\n\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(events(), headers={"cache-control": "no-cache"})


@pytest.fixture(scope="module")
def daemon(make_daemon: Callable[..., Any]) -> Any:
    daemon = make_daemon(max_request_bytes=LIMIT)
    daemon.app.add_api_route("/echo", _echo, methods=["POST"])
    daemon.app.add_api_route("/typed", _typed, methods=["POST"])
    for name, endpoint in {
        "boom": _boom,
        "surrogate": _surrogate,
        "overloaded": _overloaded,
        "breaking": _breaking,
        "endless": _endless,
    }.items():
        daemon.app.add_api_route(f"/{name}", endpoint, methods=["GET"])
    return daemon


@pytest.fixture(scope="module")
def server(daemon: Any, serve: Callable[..., Any]) -> Any:
    return serve(daemon.app)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/livez/", 404, "not_found"),
        ("DELETE", "/livez", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/redoc", 404, "not_found"),
        ("GET", "/boom", 500, "internal_error"),
        ("GET", "/surrogate", 400, None),
        ("GET", "/overloaded", 429, "overloaded"),
    ],
)
def test_every_error_has_the_nested_body_and_the_common_headers(
    server: Any, method: str, path: str, status: int, code: str | None
) -> None:
    reply = server.request(method, path)
    assert reply.status == status
    assert set(reply.json) == {"error"}
    assert set(reply.json["error"]) == {"message", "type", "param", "code"}
    assert reply.json["error"]["code"] == code
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.headers["x-request-id"]) == 32
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.body.isascii()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/demo", None),
        ("POST", "/v1/completions", b'{"prompt": "a"}'),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}]}'),
    ],
)
def test_before_the_model_is_known_the_api_says_503_and_when_to_come_back(
    server: Any, method: str, path: str, body: bytes | None
) -> None:
    reply = server.request(method, path, body, [("Content-Type", "application/json")])
    assert (reply.status, reply.json["error"]["code"]) == (503, "engine_unavailable")
    assert reply.headers["retry-after"] == "1"


def test_method_not_allowed_names_the_methods_that_are(server: Any) -> None:
    reply = server.request("DELETE", "/echo")
    assert reply.headers["allow"] == "POST"


def test_retry_headers_of_an_error_reach_the_client(server: Any) -> None:
    headers = server.get("/overloaded").headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "2500")


def test_openapi_document_is_served(server: Any) -> None:
    paths = server.get("/openapi.json").json["paths"]
    assert {"/livez", "/readyz", "/metrics", "/v1/chat/completions"} <= set(paths)


def test_a_good_request_id_is_echoed(server: Any) -> None:
    for given in ("abc-123", "Root=1-67891233-abcdef/x:y+z@w~.", "x" * LIMITS.request_id_chars):
        assert server.get("/livez", x_request_id=given).headers["x-request-id"] == given


@pytest.mark.parametrize(
    "given", ["x" * (LIMITS.request_id_chars + 1), "a b", "a\tb", "é", "", "{}"]
)
def test_a_bad_request_id_is_replaced(server: Any, given: str) -> None:
    echoed = server.get("/livez", x_request_id=given).headers["x-request-id"]
    assert echoed != given
    assert len(echoed) == 32


def test_an_unhandled_error_is_logged_with_its_request_id_and_not_shown(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from quire.server.logs import RequestIdFilter

    caplog.handler.addFilter(RequestIdFilter())
    reply = server.get("/boom", x_request_id="find-me")
    assert b"secret detail" not in reply.body
    record = next(record for record in caplog.records if record.exc_info)
    assert record.name == "quire.server.middleware"
    assert record.request_id == "find-me"  # type: ignore[attr-defined]
    assert "secret detail" in str(record.exc_info[1])  # type: ignore[index]


def test_an_error_after_the_first_byte_breaks_the_connection(
    server: Any, daemon: Any, drain: Callable[..., bytes], value_of: Callable[..., float]
) -> None:
    with server.connect() as raw:
        raw.sendall(b"GET /breaking HTTP/1.1\r\nHost: a\r\n\r\n")
        received = drain(raw)
    assert b"data: 1" in received
    # The last chunk never came, so a client cannot take the reply for whole.
    assert not received.endswith(b"0\r\n\r\n")
    labels = {"handler": "/breaking", "method": "GET", "status": "500"}
    assert value_of(daemon.metrics, "http_requests_total", **labels) == 1


def test_a_refused_field_is_named(server: Any) -> None:
    reply = server.request(
        "POST", "/typed", b'{"count": "x"}', [("Content-Type", "application/json")]
    )
    assert reply.status == 400
    assert reply.json["error"]["param"] == "count"
    assert reply.json["error"]["message"].startswith("count: ")


@pytest.mark.parametrize(
    "host", ["a/b", "a b", "a@b", "a?b", "a#b", "", "a:b", "[::1", "a,b", "a\\b"]
)
def test_a_malformed_host_is_refused(server: Any, host: str) -> None:
    reply = server.request("GET", "/livez", headers=[("Host", host)])
    assert reply.status == 400
    assert reply.json["error"]["message"].startswith("Host:")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8000", "quire.svc_1.local"])
def test_a_host_is_accepted(server: Any, host: str) -> None:
    assert server.request("GET", "/livez", headers=[("Host", host)]).status == 200


def test_two_hosts_are_refused(server: Any) -> None:
    assert server.request("GET", "/livez", headers=[("Host", "a"), ("Host", "b")]).status == 400


@pytest.mark.parametrize(
    "value", ["0", "-1", "nan", "inf", "1e", "1e5", "soon", "", "1,2", "86400.5"]
)
def test_a_time_limit_that_is_none_is_refused(server: Any, value: str) -> None:
    reply = server.request("GET", "/livez", headers=[("x-request-timeout", value)])

    assert (reply.status, reply.json["error"]["param"]) == (400, "x-request-timeout")
    assert "at most 86400" in reply.json["error"]["message"]


def test_two_time_limits_are_refused(server: Any) -> None:
    headers = [("x-request-timeout", "1"), ("x-request-timeout", "2")]
    assert server.request("GET", "/livez", headers=headers).status == 400


@pytest.mark.parametrize("value", ["1", "0.25", "86400", "1e3", "2.5E+1"])
def test_a_time_limit_is_accepted(server: Any, value: str) -> None:
    headers = [("x-request-timeout", value)]
    assert server.request("GET", "/livez", headers=headers).status == 200


# The body.


def _chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def test_a_body_of_exactly_the_limit_is_read(server: Any) -> None:
    assert server.request("POST", "/echo", b"x" * LIMIT).json == {"bytes": LIMIT}
    chunked = [("Transfer-Encoding", "chunked")]
    body = _chunked(*[b"x"] * LIMIT)
    assert server.request("POST", "/echo", body, chunked).json == {"bytes": LIMIT}


def test_a_declared_length_over_the_limit_is_refused_before_a_byte_arrives(
    server: Any, drain: Callable[..., bytes]
) -> None:
    with server.connect() as raw:
        raw.sendall(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
            % (LIMIT + 1)
        )
        received = raw.recv(65536)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"the limit is 4096 (max_request_bytes)" in received


def test_a_body_that_grows_over_the_limit_is_refused(server: Any) -> None:
    body = _chunked(b"x" * LIMIT, b"x")
    reply = server.request("POST", "/echo", body, [("Transfer-Encoding", "chunked")])
    assert (reply.status, reply.json["error"]["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "identity, gzip"])
def test_a_compressed_body_is_refused(server: Any, encoding: str) -> None:
    reply = server.request("POST", "/echo", b"x", [("Content-Encoding", encoding)])
    assert (reply.status, reply.json["error"]["code"]) == (415, "unsupported_media_type")
    assert server.request("POST", "/echo", b"x", [("Content-Encoding", "Identity")]).status == 200


def test_a_connection_is_of_use_after_a_refused_body(server: Any) -> None:
    with server.connect() as raw:
        raw.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")
        raw.sendall(b"x" * 100_000 + b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")


async def _run(
    app: Any, headers: list[tuple[bytes, bytes]], messages: list[Message]
) -> list[Message]:
    """Call an ASGI app; after `messages` the client says nothing more."""
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": "/echo", "headers": headers}
    await app(scope, receive, send)
    return sent


async def _never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the endpoint must not run")


async def test_a_body_that_does_not_arrive_is_408() -> None:
    app = RequestMiddleware(BodyMiddleware(_never, LIMIT, seconds=0.05), Metrics("demo"))
    part: Message = {"type": "http.request", "body": b"x", "more_body": True}
    sent = await _run(app, [(b"content-length", b"2")], [part])
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert b'"code": "request_timeout"' in sent[1]["body"]


async def test_a_client_that_leaves_while_sending_gets_nothing(
    value_of: Callable[..., float],
) -> None:
    metrics = Metrics("demo")
    app = RequestMiddleware(BodyMiddleware(_never, LIMIT), metrics)
    part: Message = {"type": "http.request", "body": b"x", "more_body": True}
    assert await _run(app, [(b"content-length", b"2")], [part, {"type": "http.disconnect"}]) == []
    assert value_of(metrics, "http_requests_total", status="499") == 1


async def test_websockets_are_refused(make_daemon: Callable[..., Any]) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope: Scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    await make_daemon(keys="k").app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_a_client_that_leaves_a_stream_is_counted_as_499(
    server: Any, daemon: Any, value_of: Callable[..., float]
) -> None:
    left_before = value_of(daemon.metrics, "quire_client_disconnects_total")
    with server.connect() as raw:
        raw.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        head = raw.recv(65536)
        assert b"cache-control: no-store" in head and b"no-cache" not in head
    labels = {"handler": "/endless", "method": "GET", "status": "499"}
    deadline = time.monotonic() + 5
    while value_of(daemon.metrics, "http_requests_total", **labels) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert value_of(daemon.metrics, "quire_client_disconnects_total") == left_before + 1


async def test_a_stream_that_is_given_up_is_499_and_no_disconnect(
    value_of: Callable[..., float],
) -> None:
    async def stalled(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    metrics = Metrics("demo")
    await _run(RequestMiddleware(stalled, metrics), [], [])
    assert value_of(metrics, "http_requests_total", status="499") == 1
    assert value_of(metrics, "quire_client_disconnects_total") == 0


def test_paths_and_methods_of_clients_do_not_become_labels(server: Any, daemon: Any) -> None:
    server.get("/secret-path")
    server.request("PROPFIND", "/livez")
    server.get("/v1/models/whatever-name")
    server.request("POST", "/v1/chat/completions", b"{")
    text = daemon.metrics.render()[0].decode()
    assert "secret-path" not in text and "PROPFIND" not in text and "whatever-name" not in text
    assert 'http_requests_total{handler="other",method="GET",status="404"}' in text
    assert 'http_requests_total{handler="/livez",method="other",status="405"}' in text
    assert 'http_requests_total{handler="/v1/chat/completions",method="POST",' in text


def test_one_line_per_request_is_logged(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quire")
    server.get("/livez")
    server.get("/overloaded")
    ends: list[logging.LogRecord] = []
    # The line is written once the last byte is on its way, which a fast client may overtake.
    deadline = time.monotonic() + 5
    while not ends and time.monotonic() < deadline:
        ends = [record for record in caplog.records if record.message == "request"]
    assert [(record.path, record.status) for record in ends] == [  # type: ignore[attr-defined]
        ("/overloaded", 429)
    ]

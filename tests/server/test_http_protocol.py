"""What one connection may do: size, number and slowness of what it sends, over raw sockets."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from quire.config.limits import LIMITS
from quire.server import http_protocol
from quire.server.http_protocol import BoundedHttpProtocol as Protocol
from quire.server.http_protocol import Deadlines

HUGE_BYTES = 64_000_000
"""More than the kernel's buffers of a connection take."""


async def _endless() -> StreamingResponse:
    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: 1\n\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(events())


async def _huge() -> Response:
    return Response(b"x" * HUGE_BYTES)


async def _flood() -> StreamingResponse:
    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000
            await asyncio.sleep(0)

    return StreamingResponse(events())


async def _echo(request: Request) -> Response:
    return Response(await request.body())


async def _wait(request: Request) -> Response:
    request.app.state.waiting += 1
    while not await request.is_disconnected():
        await asyncio.sleep(0.01)
    request.app.state.waiting -= 1
    return Response()


async def _slow() -> Response:
    await asyncio.sleep(0.8)
    return Response(b"slow")


@pytest.fixture(scope="module")
def daemon(make_daemon: Callable[..., Any]) -> Any:
    daemon = make_daemon(max_request_bytes=4096)
    daemon.app.state.waiting = 0
    for endpoint in (_endless, _huge, _flood, _wait, _slow, _pieces):
        path = endpoint.__name__.replace("_", "/")
        daemon.app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
    daemon.app.add_api_route("/echo", _echo, methods=["POST"], response_model=None)
    return daemon


@pytest.fixture(scope="module")
def server(daemon: Any, serve: Callable[..., Any]) -> Any:
    return serve(daemon.app)


def _reply(raw: socket.socket) -> bytes:
    """One whole reply, in however many pieces it arrives."""
    with raw.makefile("rb") as file:
        head = b"".join(iter(file.readline, b"\r\n"))
        length = re.search(rb"content-length: (\d+)", head)
        assert length, head
        return head + file.read(int(length[1]))


def _get(path: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join((b"GET " + path + b" HTTP/1.1", b"Host: a", *headers)) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        _get(b"/livez", *[b"a%d: b" % number for number in range(LIMITS.headers)]),
        _get(b"/livez", b"a: " + b"b" * LIMITS.header_bytes),
        _get(b"/livez", *[b"a: " + b"b" * 8000] * 9),
        b"GET /livez HTTP/1.1\r\nHost: a\r\na: " + b"b" * (LIMITS.header_bytes + 1),
        b"GET /" + b"a" * (LIMITS.header_bytes + 1),
    ],
    ids=["count", "one long", "sum", "endless header", "endless path"],
)
def test_headers_over_the_limits_are_431(
    server: Any, drain: Callable[..., bytes], request_bytes: bytes
) -> None:
    with server.connect() as raw:
        raw.sendall(request_bytes)
        received = drain(raw)
    assert received.startswith(b"HTTP/1.1 431 ")
    assert b'"code": "headers_too_large"' in received
    assert b"x-request-id: " in received


def test_headers_at_the_limits_pass(server: Any) -> None:
    fields = [b"a%d: b" % number for number in range(LIMITS.headers - 1)]
    with server.connect() as raw:
        raw.sendall(_get(b"/livez", *fields))
        assert _reply(raw).startswith(b"HTTP/1.1 200 ")
        head = _get(b"/livez", b"a: " + b"b" * 40_000)
        raw.sendall(head[:30_000])
        time.sleep(0.05)
        raw.sendall(head[30_000:])
        assert _reply(raw).startswith(b"HTTP/1.1 200 ")


def test_what_is_not_http_gets_the_nested_400(server: Any, drain: Callable[..., bytes]) -> None:
    with server.connect() as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00 not http\r\n\r\n")
        received = drain(raw)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'"type": "invalid_request_error"' in received


@pytest.mark.parametrize(
    ("first", "answer"),
    [(b"", b""), (b"\r\n", b"HTTP/1.1 408 "), (b"GET /livez HTT", b"HTTP/1.1 408 ")],
)
def test_a_request_that_does_not_arrive_is_given_up(
    server: Any,
    drain: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    first: bytes,
    answer: bytes,
) -> None:
    monkeypatch.setattr(Protocol, "deadlines", Deadlines(header=0.4))
    with server.connect() as raw:
        raw.sendall(first)
        assert drain(raw)[:13] == answer


def test_a_body_in_drops_is_408_with_the_error_body(
    make_daemon: Callable[..., Any], serve: Callable[..., Any], drain: Callable[..., bytes]
) -> None:
    daemon = make_daemon(body_timeout=0.2)
    daemon.app.add_api_route("/echo", _echo, methods=["POST"])
    with serve(daemon.app).connect() as raw:
        raw.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        # On a busy machine the server may have hung up before the last drop.
        with contextlib.suppress(ConnectionError):
            for _ in range(4):
                raw.sendall(b"x")
                time.sleep(0.04)
        received = drain(raw)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"message": "The request body did not arrive within 0.2 s"' in received


def test_a_refused_body_cannot_hold_the_connection(
    server: Any, drain: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Protocol, "deadlines", Deadlines(body=0.1))
    monkeypatch.setattr(http_protocol, "BODY_GRACE_SECONDS", 0.1)
    with server.connect() as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx")
        assert drain(raw).startswith(b"HTTP/1.1 413 ")


def test_line_breaks_between_requests_do_not_hold_the_connection(
    server: Any, drain: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Protocol, "deadlines", Deadlines(header=0.4))
    with server.connect() as raw:
        raw.sendall(_get(b"/livez"))
        assert _reply(raw).startswith(b"HTTP/1.1 200 ")
        raw.sendall(b"\r\n")
        assert drain(raw) == b""


def test_pipelined_requests_are_answered_in_order(server: Any, drain: Callable[..., bytes]) -> None:
    with server.connect() as raw:
        raw.sendall(_get(b"/livez") + _get(b"/nothing") + _get(b"/version", b"Connection: close"))
        received = drain(raw)
    assert [part.split(b" ", 1)[0] for part in received.split(b"HTTP/1.1 ")[1:]] == [
        b"200", b"404", b"200",
    ]  # fmt: skip


@pytest.mark.parametrize("behind", [0, 1, 3])
def test_a_client_that_left_is_noticed_with_requests_behind_the_first(
    daemon: Any, server: Any, behind: int
) -> None:
    with server.connect() as raw:
        raw.sendall(_get(b"/wait"))
        _until(lambda: daemon.app.state.waiting == 1)
        raw.sendall(_get(b"/wait") * behind)
        time.sleep(0.05)
    _until(lambda: daemon.app.state.waiting == 0)


def test_requests_behind_one_whose_client_left_are_not_served(daemon: Any, server: Any) -> None:
    with server.connect() as raw:
        raw.sendall(_get(b"/wait") * 3)
        _until(lambda: daemon.app.state.waiting == 1)
    _until(lambda: daemon.app.state.waiting == 0)


@pytest.mark.parametrize("rest", [b"garbage\r\n\r\n", b"GET http:///a HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("between", [b"", _get(b"/livez")], ids=["second", "third"])
def test_what_is_not_http_behind_a_request_is_not_answered_in_its_place(
    server: Any, drain: Callable[..., bytes], between: bytes, rest: bytes
) -> None:
    with server.connect() as raw:
        raw.sendall(_get(b"/slow") + between + rest)
        assert drain(raw) == b""


def test_a_request_that_is_begun_behind_another_does_not_end_it(
    server: Any, drain: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Protocol, "deadlines", Deadlines(header=0.4))
    with server.connect() as raw:
        raw.sendall(_get(b"/slow"))
        time.sleep(0.05)
        raw.sendall(b"GET /livez HTT")
        received = drain(raw)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"slowHTTP/1.1 408 " in received


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def test_a_slow_stream_is_not_cut_by_the_receipt_deadlines(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Protocol, "deadlines", Deadlines(header=0.4, body=0.4))
    monkeypatch.setattr(http_protocol, "BODY_GRACE_SECONDS", 0.0)
    with server.connect() as raw:
        # A second request waits behind the stream; its deadline must not end the stream.
        raw.sendall(
            _get(b"/endless")
            + b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
        )
        received, deadline = b"", time.monotonic() + 1.5
        while time.monotonic() < deadline:
            chunk = raw.recv(65536)
            assert chunk, "the stream was cut"
            received += chunk
    assert received.count(b"data: 1") > 10


def test_hundreds_of_requests_in_one_write_are_all_answered(
    server: Any, drain: Callable[..., bytes]
) -> None:
    with server.connect() as raw:
        raw.sendall(_get(b"/livez") * 4000 + _get(b"/livez", b"Connection: close"))
        received = drain(raw)
    assert received.count(b"HTTP/1.1 200 ") == 4001


def test_a_trailer_without_end_is_431(server: Any, drain: Callable[..., bytes]) -> None:
    with server.connect() as raw:
        raw.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: ")
        time.sleep(0.05)
        raw.sendall(b"a" * (LIMITS.header_bytes + 1))
        received = drain(raw)
    assert received.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("cut", [None, 40, 70])
def test_an_offer_to_upgrade_is_ignored_and_the_body_is_read(
    server: Any, drain: Callable[..., bytes], cut: int | None
) -> None:
    request = (
        b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: 22\r\n\r\n"
        b"upgrade: body\nupgrade: "
    )
    with server.connect() as raw:
        raw.sendall(request[:cut])
        if cut is not None:
            time.sleep(0.05)
            raw.sendall(request[cut:])
        received = drain(raw)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"\r\n\r\nupgrade: body\nupgrade:")


@pytest.mark.parametrize("path", [b"/huge", b"/flood"])
def test_a_client_that_reads_nothing_is_cut_off(
    daemon: Any,
    server: Any,
    drain: Callable[..., bytes],
    value_of: Callable[..., float],
    monkeypatch: pytest.MonkeyPatch,
    path: bytes,
) -> None:
    monkeypatch.setattr(Protocol, "deadlines", Deadlines(reader=0.2))
    lost, connection_lost = threading.Event(), Protocol.connection_lost

    def on_lost(self: Protocol, error: Exception | None) -> None:
        connection_lost(self, error)
        lost.set()

    monkeypatch.setattr(Protocol, "connection_lost", on_lost)
    before = value_of(daemon.metrics, "quire_slow_readers_aborted_total")
    with server.connect() as raw:
        raw.sendall(_get(path))
        assert lost.wait(20), "it was not cut off"
        assert len(drain(raw)) < HUGE_BYTES
    if path == b"/flood":
        _until(lambda: value_of(daemon.metrics, "quire_slow_readers_aborted_total") == before + 1)


def test_a_slow_reader_is_not_cut_off(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Protocol, "deadlines", Deadlines(reader=0.6))
    with server.connect() as raw:
        raw.sendall(_get(b"/flood"))
        received, deadline = 0, time.monotonic() + 2.5
        while time.monotonic() < deadline:
            received += len(raw.recv(4_000_000))
            time.sleep(0.02)
        assert raw.recv(1)


async def _pieces() -> StreamingResponse:
    async def events() -> AsyncIterator[bytes]:
        for piece in (b"data: 1\n\n", b"", b"data: [DONE]\n\n"):
            yield piece

    return StreamingResponse(events(), media_type="text/event-stream")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_of_http_1_0_gets_a_stream_without_chunks(
    server: Any, drain: Callable[..., bytes], version: bytes
) -> None:
    with server.connect() as raw:
        raw.sendall(b"GET /pieces HTTP/%s\r\nHost: a\r\nConnection: close\r\n\r\n" % version)
        head, _, body = drain(raw).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    plain = b"data: 1\n\ndata: [DONE]\n\n"
    assert (body == plain) is (version == b"1.0")
    assert (b"transfer-encoding" in head) is (version == b"1.1")


@pytest.mark.parametrize(
    ("request_bytes", "body"),
    [
        (b"GET /version HTTP/1.0\r\n\r\n", b'"version"'),
        (b"HEAD /version HTTP/1.0\r\n\r\n", b""),
        (b"GET /nothing HTTP/1.0\r\n\r\n", b'"not_found"'),
        (b"POST /echo HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    ],
)
def test_a_whole_reply_to_http_1_0_has_its_length(
    server: Any, drain: Callable[..., bytes], request_bytes: bytes, body: bytes
) -> None:
    with server.connect() as raw:
        raw.sendall(request_bytes)
        head, _, received = drain(raw).partition(b"\r\n\r\n")
    assert b"content-length: " in head and b"connection: close" in head
    assert body in received if body else received == b""


def test_a_body_that_is_being_read_is_not_cut_by_the_connections_deadline(
    server: Any, drain: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Protocol, "deadlines", Deadlines(body=0.05))
    monkeypatch.setattr(http_protocol, "BODY_GRACE_SECONDS", 0.05)
    with server.connect() as raw:
        raw.sendall(
            b"POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 3\r\n\r\n"
        )
        for _ in range(3):
            time.sleep(0.15)
            raw.sendall(b"x")
        assert drain(raw).endswith(b"\r\n\r\nxxx")

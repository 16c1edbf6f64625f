"""What every HTTP exchange goes through, as pure ASGI: id, headers, errors, metrics, log, body.

`RequestMiddleware` is the outermost layer, `BodyMiddleware` the innermost; authentication
(`server.auth`) is between them, so that nothing is read from a caller without a key.
"""

import asyncio
import json
import logging
import math
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.config.limits import LIMITS
from quire.server.error_bodies import error_body_of
from quire.server.errors import (
    ApiError,
    InternalError,
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from quire.server.logs import QUIET_PATHS, REQUEST_ID, log_request_end, request_details
from quire.server.metrics import Metrics
from quire.server.tracing import HttpTrace, Tracing

BODY_SECONDS = 30.0
"""How long a body may take to arrive."""

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left or stopped reading; only metrics and logs see it."""

STREAMED_PATHS = frozenset({"/v1/files"})
"""Their endpoints read the body themselves, in pieces, within bounds of their own."""

READER_STALLED = "quire.reader_stalled"
"""The key that `http_protocol` sets in the scope of a request whose client did not read."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]+")
_TIMEOUT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_OWN_HEADERS = (b"x-request-id", b"request-id", b"x-content-type-options", b"cache-control")
"""Anthropic's clients read the id as `request-id`."""

logger = logging.getLogger(__name__)


def error_response(error: ApiError, scope: Scope) -> Response:
    """`error` as the route's clients read it. ASCII only: a lone surrogate in a message is no 500."""
    return Response(
        json.dumps(error_body_of(scope)(error)).encode("ascii"),
        status_code=error.status,
        headers=dict(error.headers),
        media_type="application/json",
    )


class RequestMiddleware:
    """Gives each request its id and its reply the headers all replies have; turns what is raised
    below into a reply; counts and logs the end."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        if self._tracing is not None and scope["path"] not in QUIET_PATHS:
            exchange.trace = scope["quire.trace"] = self._tracing.begin(scope)
            request_details(scope).trace_id = exchange.trace.trace_id
        try:
            _check_host(scope)
            scope["quire.timeout"] = _timeout(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except ApiError as error:
            await self._reply(error, exchange)
        except Exception:
            logger.exception("unhandled error in %s %s", scope["method"], exchange.handler)
            exchange.has_failed = True
            if exchange.status is not None:
                raise
            await self._reply(InternalError("The server failed; its log says why"), exchange)
        finally:
            self._finish(exchange)

    async def _reply(self, error: ApiError, exchange: "_Exchange") -> None:
        if exchange.status is not None:
            raise error
        await error_response(error, exchange.scope)(exchange.scope, exchange.receive, exchange.send)

    def _finish(self, exchange: "_Exchange") -> None:
        seconds = time.monotonic() - exchange.began
        scope, status = exchange.scope, exchange.final_status
        if READER_STALLED in scope:
            logger.warning("client stopped reading, reply aborted")
            self._metrics.on_slow_reader()
        elif exchange.is_disconnected:
            self._metrics.on_disconnect()
        self._metrics.http.on_request(
            exchange.handler,
            scope["method"],
            status,
            seconds,
            received=exchange.num_received,
            sent=exchange.num_sent,
        )
        if exchange.trace is not None:
            exchange.trace.end(exchange.route, status)
        log_request_end(scope, status, seconds)


class _Exchange:
    """One request and its reply as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.began = scope["quire.arrival"] = time.monotonic()
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self.is_disconnected = False
        """Whether the client left before the reply was complete."""
        self.has_failed = False
        """Whether an error broke the reply."""
        self.trace: HttpTrace | None = None
        self.num_received = 0
        """Bytes of the body, as far as it was read."""
        self.num_sent = 0
        """Bytes of the reply's body."""
        self._is_complete = False
        request_id = _request_id(scope)
        scope["quire.request_id"] = request_id
        REQUEST_ID.set(request_id)
        shown_id = request_id.encode("ascii")
        values = (shown_id, shown_id, b"nosniff", b"no-store")
        self._headers = list(zip(_OWN_HEADERS, values, strict=True))

    @property
    def route(self) -> str | None:
        """The route's template; None where no route was found or asked for."""
        return getattr(self.scope.get("route"), "path", None)

    @property
    def handler(self) -> str:
        return self.route or "other"

    @property
    def final_status(self) -> int:
        if self._is_complete and self.status is not None:
            return self.status
        return InternalError.status if self.has_failed else CLIENT_CLOSED_REQUEST

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.num_received += len(message.get("body", b""))
        elif message["type"] == "http.disconnect" and not self._is_complete:
            self.is_disconnected = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            others = [pair for pair in message["headers"] if pair[0].lower() not in _OWN_HEADERS]
            message = {**message, "headers": others + self._headers}
        await self._send(message)
        if message["type"] == "http.response.body":
            self.num_sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                # A reply that was given up on is finished too, but nobody read it.
                self._is_complete = not self.is_disconnected


class BodyMiddleware:
    """Reads a request's body, at most `max_bytes` of it within `seconds`, before the endpoint runs.

    Raises:
        UnsupportedMediaType: the body is compressed (a small one could unpack to a huge one).
        PayloadTooLarge: by the declared length before a byte is read, else by the bytes counted.
        RequestTimeout: the body took longer than `seconds`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in STREAMED_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if declared == "0" and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise UnsupportedMediaType("Content-Encoding: only identity is accepted")
        if not declared.isdecimal():
            raise InvalidRequest("Content-Length: not a number")
        self._check_size(int(declared))
        body = await self._read(receive)
        if body is not None:
            await self._app(scope, _Replay(body, receive).receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or None when the client left before it was complete."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    self._check_size(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise RequestTimeout(
                f"The request body did not arrive within {self._seconds:g} s"
            ) from None

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise PayloadTooLarge(
                f"The request body has {size} bytes or more; the limit is {self._max_bytes} "
                "(max_request_bytes)"
            )


class _Replay:
    """`receive` for the endpoint: the body that was read, then what the client does next."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def receive(self) -> Message:
        message, self._message = self._message, None
        return message if message is not None else await self._receive()


def _request_id(scope: Scope) -> str:
    """The client's own id if it is one that can be logged and echoed as it is, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    if len(given) <= LIMITS.request_id_chars and _REQUEST_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex


def _check_host(scope: Scope) -> None:
    """Refuse a Host that is not one host: URLs rebuilt from it would not mean what was asked."""
    hosts = Headers(scope=scope).getlist("host")
    if len(hosts) > 1 or any(not _HOST.fullmatch(host) for host in hosts):
        raise InvalidRequest("Host: not a valid host name")


def _timeout(scope: Scope) -> float | None:
    """Seconds of x-request-timeout; None without it."""
    values = Headers(scope=scope).getlist("x-request-timeout")
    if not values:
        return None
    seconds = float(values[0]) if len(values) == 1 and _TIMEOUT.fullmatch(values[0]) else math.nan
    if not 0.0 < seconds <= LIMITS.timeout_seconds:
        raise InvalidRequest(
            f"'x-request-timeout' must be seconds above 0 and at most {LIMITS.timeout_seconds:g} "
            f"(given: {values[0][:32]})",
            param="x-request-timeout",
            code="invalid_value",
        )
    return seconds

"""uvicorn's httptools protocol with the bounds it lacks: header size and count, time to arrive.

Without them one client can hold a connection open with a byte now and then, or make the parser
buffer a header without end (xinference #5213; uvicorn #157). Pass it as `uvicorn.Config(http=...)`.
"""

import asyncio
import http
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quire.config.limits import LIMITS
from quire.server.errors import ApiError, InvalidRequest, RequestTimeout
from quire.server.middleware import BODY_SECONDS, error_response

MAX_HEADERS = 100
HEADER_SECONDS = 10.0
BODY_GRACE_SECONDS = 5.0
"""A body's time is kept by BodyMiddleware, which can answer; this closes what it already answered."""


class HeadersTooLarge(InvalidRequest):
    """More than LIMITS.header_bytes or MAX_HEADERS."""

    status = http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    code = "headers_too_large"


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. A request whose headers are too large or too slow is refused and the
    connection closed; so is one whose body does not end long after it was refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # No route is a websocket; an upgrade is plain HTTP.
        self._parsed_bytes = 0
        self._fed_bytes = 0
        self._in_headers = True
        self._refusal: ApiError | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_headers:
            # The parser reports a header when it is whole, so one that never ends is counted here.
            self._fed_bytes += len(data)
            if self._fed_bytes > LIMITS.header_bytes:
                self._refuse(self._too_large())
        elif self.cycle.response_complete and self._deadline is None:
            # Bytes between requests stop uvicorn's keep-alive timer and begin no message.
            self._arm(HEADER_SECONDS)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._parsed_bytes = 0
        self._fed_bytes = 0
        self._arm(HEADER_SECONDS)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._arm(BODY_SECONDS + BODY_GRACE_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called for what the parser cannot read, and for what `_count` stopped."""
        self._refuse(self._refusal or InvalidRequest("The request is not valid HTTP"))

    def _count(self, size: int) -> None:
        self._parsed_bytes += size
        if self._parsed_bytes > LIMITS.header_bytes or len(self.headers) >= MAX_HEADERS:
            self._refusal = self._too_large()
            # The parser turns what a callback raises into its own error, and stops.
            raise self._refusal

    def _too_large(self) -> ApiError:
        return HeadersTooLarge(
            f"The request's headers exceed {LIMITS.header_bytes} bytes or {MAX_HEADERS} fields"
        )

    def _refuse(self, error: ApiError) -> None:
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
            return
        response = error_response(error)
        phrase = http.HTTPStatus(response.status_code).phrase
        head = [f"HTTP/1.1 {response.status_code} {phrase}".encode("ascii")]
        head += [name + b": " + value for name, value in response.raw_headers]
        head += [b"x-request-id: " + uuid.uuid4().hex.encode("ascii")]
        if b"connection" not in dict(response.raw_headers):
            head += [b"connection: close"]
        self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + bytes(response.body))
        self.transport.close()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._on_deadline, seconds)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self, seconds: float) -> None:
        if self.flow.read_paused or self.pipeline:
            # It is us who do not read on: an earlier request's reply is still under way.
            self._arm(seconds)
        elif self._in_headers and self._fed_bytes:
            self._refuse(RequestTimeout(f"The request did not arrive within {seconds:g} s"))
        else:
            self.transport.close()

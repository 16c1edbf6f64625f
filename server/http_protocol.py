"""uvicorn's httptools protocol with the bounds it lacks: header size and count, time to arrive,
time to be read.

Without them one client can hold a connection open with a byte now and then, make the parser
buffer a header without end (xinference #5213; uvicorn #157), or keep a reply that it never reads.
Pass `protocol_with(deadlines)` as `uvicorn.Config(http=...)`.
"""

import asyncio
import http
import re
import uuid
from dataclasses import dataclass
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from quire.config.limits import LIMITS
from quire.server.errors import ApiError, InvalidRequest, RequestTimeout
from quire.server.middleware import READER_STALLED, error_response

BODY_GRACE_SECONDS = 5.0
"""A body's time is kept by BodyMiddleware, which can answer; this closes what it already answered."""

WAITING_REQUESTS = 32
"""Pipelined behind the one being answered, until the connection is not read on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds that a connection's other end may take."""

    header: float = 10.0
    """For the headers of a request."""
    body: float = 30.0
    reader: float = 30.0
    """Without taking anything of its reply; then it is cut off, so that the reply holds neither KV
    pages nor memory."""


_UPGRADE = re.compile(rb"(?<=\n)upgrade(?=[ \t]*:)", re.IGNORECASE)


class HeadersTooLarge(InvalidRequest):
    """More than LIMITS.header_bytes or LIMITS.headers."""

    status = http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    code = "headers_too_large"


class _UnchunkedReply(RequestResponseCycle):
    """A reply to HTTP/1.0, which has no chunks: a body of unknown length ends with the connection
    (RFC 9112, 6.3)."""

    ends_with_connection = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            if b"content-length" not in names:
                self.ends_with_connection = True
                self.chunked_encoding = False
        elif self.ends_with_connection:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. A request whose headers are too large or too slow is refused and the
    connection closed; so is one whose body does not end long after it was refused, and one whose
    client does not read. A wish to upgrade is ignored, as HTTP allows."""

    deadlines = Deadlines()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # No route is a websocket; an upgrade is plain HTTP.
        self._parsed_bytes = 0
        self._unreported_bytes = 0
        self._in_headers = True
        self._in_body = False
        self._has_advanced = False
        self._refusal: ApiError | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._reader_check: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None

    @property
    def is_replying(self) -> bool:
        """Whether a request was received that has not been answered to its end."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=LIMITS.unsent_bytes)
        self._arm(self.deadlines.header)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_watching_reader()
        # uvicorn tells the latest request alone; those before it would run for nobody.
        for cycle in (self._answering, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            data = _without_upgrade(data)
        self._has_advanced = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._count_unreported(data)
        if self._unreported_bytes > LIMITS.header_bytes:
            self._refuse(self._too_large())
        elif self._in_headers:
            return
        elif self.cycle.response_complete and self._deadline is None:
            # Bytes between requests stop uvicorn's keep-alive timer and begin no message.
            self._arm(self.deadlines.header)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._parsed_bytes = 0
        self._unreported_bytes = 0
        self._arm(self.deadlines.header)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            # uvicorn makes the object itself, and calls `send` when its task runs.
            self.cycle.__class__ = _UnchunkedReply
        self._in_headers = False
        self._in_body = True
        self._has_advanced = True
        self._arm(self.deadlines.body + BODY_GRACE_SECONDS)
        if not self.pipeline:
            self._answering = self.cycle
        elif len(self.pipeline) <= WAITING_REQUESTS:
            # A connection that is not read does not tell that the client has left.
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self._has_advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._has_advanced = True
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()
        self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_watching_reader()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Called for what the parser cannot read, and for what `_count` stopped."""
        self._refuse(self._refusal or InvalidRequest("The request is not valid HTTP"))

    def _count(self, size: int) -> None:
        self._parsed_bytes += size
        if self._parsed_bytes > LIMITS.header_bytes or len(self.headers) >= LIMITS.headers:
            self._refusal = self._too_large()
            # The parser turns what a callback raises into its own error, and stops.
            raise self._refusal

    def _count_unreported(self, data: bytes) -> None:
        # The parser reports a header or trailer when it is whole; until then it only grows.
        if not self._has_advanced:
            self._unreported_bytes += len(data)
        elif self._in_headers and b"\r\n\r\n" in data:
            self._unreported_bytes = len(data.rpartition(b"\r\n\r\n")[2])
        else:
            self._unreported_bytes = 0

    def _too_large(self) -> ApiError:
        return HeadersTooLarge(
            f"The request's headers exceed {LIMITS.header_bytes} bytes or {LIMITS.headers} fields"
        )

    @property
    def _is_behind(self) -> bool:
        """Whether what arrives comes after a request that is not answered yet."""
        return bool(self.pipeline) or (self.is_replying and not self._in_body)

    def _refuse(self, error: ApiError) -> None:
        has_begun = self.is_replying and self.cycle.response_started
        if has_begun or self._is_behind:
            # An answer now would be taken for that of another request.
            self.transport.close()
            return
        response = error_response(error, {})
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
        if self.flow.read_paused or self._is_behind:
            # It is us who do not read on: an earlier request's reply is still under way.
            self._arm(seconds)
        elif self._in_body and not self.cycle.response_started:
            # Whoever reads the body keeps its time; a large one may take long.
            self._arm(seconds)
        elif self._in_headers and self._unreported_bytes:
            self._refuse(RequestTimeout(f"The request did not arrive within {seconds:g} s"))
        else:
            self.transport.close()

    def _watch_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting and self._reader_check is None:
            self._reader_check = self.loop.call_later(
                self.deadlines.reader, self._check_reader, waiting
            )

    def _stop_watching_reader(self) -> None:
        if self._reader_check is not None:
            self._reader_check.cancel()
            self._reader_check = None

    def _check_reader(self, waiting_before: int) -> None:
        self._reader_check = None
        if self.transport.get_write_buffer_size() < waiting_before:
            self._watch_reader()
            return
        cycle = self._answering or self.cycle
        cast(Scope, cycle.scope)[READER_STALLED] = True
        self.transport.abort()


def protocol_with(deadlines: Deadlines) -> type[BoundedHttpProtocol]:
    """The protocol class with these deadlines; uvicorn makes its objects."""

    class Protocol(BoundedHttpProtocol):
        pass

    Protocol.deadlines = deadlines
    return Protocol


def _without_upgrade(data: bytes) -> bytes:
    """`data` with the Upgrade fields of its first header renamed.

    After one the parser would take the request's body for another protocol's; clients that offer
    HTTP/2 with every request (Java's, curl --http2) could send no body.
    """
    end = data.find(b"\r\n\r\n")
    if not _UPGRADE.search(data, 0, len(data) if end < 0 else end):
        return data
    head = data if end < 0 else data[:end]
    return _UPGRADE.sub(b"x-upgrade", head) + data[len(head) :]

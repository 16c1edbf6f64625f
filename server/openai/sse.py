"""`EventStream`: a generation as server-sent events, in an endpoint's own format.

Silence is broken by a comment or an event that clients skip. The end, or what went wrong after the
first byte, is always said.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.server.errors import ApiError, InternalError
from quire.server.logs import request_details
from quire.server.openai.generation import ChoiceDelta, Generation
from quire.server.openai.replies import Usage
from quire.server.openai.wire_format import WireFormat

logger = logging.getLogger(__name__)


class EventStream(Response):
    """Writes the events of `generation` and closes it, however the connection ends.

    `heartbeat`: seconds of silence before a ping keeps proxies and clients waiting.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        reply: WireFormat,
        *,
        heartbeat: float,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(
            headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._generation = generation
        self._reply = reply
        self._heartbeat = heartbeat
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await self._run()
        finally:
            self._generation.close()
            self._generation.describe(request_details(scope))

    async def _run(self) -> None:
        generation, reply = self._generation, self._reply
        try:
            await self._write(reply.begin(generation.num_choices, self._usage))
            while (delta := await self._next()) is not None:
                await self._write(reply.feed(delta, self._usage))
            if not generation.is_complete:
                return
            last = reply.end(self._usage)
        except ApiError as error:
            last = reply.failed(error)
        except Exception:
            logger.exception("stream failed")
            last = reply.failed(InternalError("The server failed on this request"))
        await self._write(last, is_last=True)

    def _usage(self) -> Usage:
        return self._generation.usage

    async def _next(self) -> ChoiceDelta | None:
        while True:
            try:
                async with asyncio.timeout(self._heartbeat):
                    return await self._generation.next()
            except TimeoutError:
                await self._write(self._reply.ping)

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        """Send `data`, if any; waits while the connection's buffer is full, until it is cut off."""
        if data or is_last:
            await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})


def event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event with `value` as its data, called `name` if it has one."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + orjson.dumps(value) + b"\n\n"

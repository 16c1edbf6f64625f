"""`EventStream`: a generation as server-sent events.

    data: {...}        one chunk
    data: {"error"..}  what went wrong after the first chunk
    data: [DONE]       the end, always
    : ping             nothing happened for a while; clients skip comments

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
from quire.server.openai.reply_format import ReplyFormat
from quire.server.openai.schema import StreamOptions

logger = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"


class EventStream(Response):
    """Writes the chunks of `generation` and closes it, however the connection ends.

    `heartbeat`: seconds of silence before a comment keeps proxies and clients waiting.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        reply: ReplyFormat,
        options: StreamOptions,
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
        self._options = options
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
        generation = self._generation
        try:
            opening = (self._reply.opening(index) for index in range(generation.num_choices))
            await self._write_choices([choice for choices in opening for choice in choices])
            while (delta := await self._next()) is not None:
                await self._write_choices(self._reply.pieces(delta))
            if not generation.is_complete:
                return
            if self._options.include_usage:
                await self._write(_event(self._reply.chunk([], generation.usage)))
        except ApiError as error:
            await self._write(_event(error.body))
        except Exception:
            logger.exception("stream failed")
            await self._write(_event(InternalError("The server failed on this request").body))
        await self._write(_DONE, is_last=True)

    async def _next(self) -> ChoiceDelta | None:
        while True:
            try:
                async with asyncio.timeout(self._heartbeat):
                    return await self._generation.next()
            except TimeoutError:
                await self._write(_PING)

    async def _write_choices(self, choices: list[Mapping[str, Any]]) -> None:
        if choices:
            usage = self._generation.usage if self._options.continuous_usage_stats else None
            events = [_event(self._reply.chunk([choice], usage)) for choice in choices]
            await self._write(b"".join(events))

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        """Send `data`; waits while the connection's buffer is full, until it is cut off."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"

"""A line's request through the same routes as a client's, without a socket."""

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.datastructures import Headers
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.config.limits import LIMITS
from quire.server.batches.line_table import Tokens
from quire.server.engine import Caller
from quire.server.errors import ApiError, InternalError, InvalidRequest, UnsupportedParameter
from quire.server.framework_errors import ERROR_HANDLERS
from quire.server.logs import REQUEST_ID
from quire.server.middleware import error_response

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LineReply:
    """What the route answered."""

    request_id: str
    status: int = 0
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""

    @property
    def is_error(self) -> bool:
        return self.status >= 400

    @property
    def may_pass_later(self) -> bool:
        """Whether the same request may be answered well another time: it is not its own fault."""
        is_ours = self.status in (408, 429) or self.status >= 500
        return is_ours and self.headers.get("x-should-retry") != "false"

    @property
    def tokens(self) -> Tokens:
        """Of a reply that is no error."""
        usage = orjson.loads(self.body).get("usage") or {}
        detail_of_input = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        detail_of_output = usage.get("completion_tokens_details") or usage.get(
            "output_tokens_details"
        )
        return Tokens(
            input=usage.get("prompt_tokens", usage.get("input_tokens", 0)),
            cached=(detail_of_input or {}).get("cached_tokens", 0),
            output=usage.get("completion_tokens", usage.get("output_tokens", 0)),
            reasoning=(detail_of_output or {}).get("reasoning_tokens", 0),
        )


class LineRoutes:
    """The application's routes without what is around them for clients.

    There is no key to show here, so nothing but the runner may call it, with the batch's owner.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        # FastAPI's routes rely on these two.
        routes = ExceptionMiddleware(AsyncExitStackMiddleware(app.router), ERROR_HANDLERS)
        self._routes = _Boundary(routes)

    async def send(self, path: str, body: dict[str, Any], caller: Caller) -> LineReply:
        """The route's answer; its errors are answers too."""
        scope = {**_scope(path, caller), "app": self._app}
        reply = LineReply(scope["quire.request_id"])

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = Headers(raw=message["headers"])
            elif message["type"] == "http.response.body":
                reply.body += message.get("body", b"")

        try:
            content = _in_background(body)
        except ApiError as error:
            await error_response(error, scope)(scope, _Body(b"").receive, collect)
            return reply
        await self._routes(scope, _Body(content).receive, collect)
        return reply


class _Body:
    """`receive` of a client that sends a body and then waits."""

    def __init__(self, content: bytes) -> None:
        self._message: Message | None = {"type": "http.request", "body": content}

    async def receive(self) -> Message:
        message, self._message = self._message, None
        if message is None:
            await asyncio.Event().wait()
        return message or {}


class _Boundary:
    """Turns what a route raises into its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
            return
        except ApiError as error:
            failure = error
        except Exception:
            logger.exception("unhandled error in a batch's request to %s", scope["path"])
            failure = InternalError("The server failed; its log says why")
        await error_response(failure, scope)(scope, receive, send)


def _in_background(body: dict[str, Any]) -> bytes:
    """The body as it is run: behind every live request.

    Raises:
        UnsupportedParameter, InvalidRequest: it asks for what a batch does not do.
    """
    if body.get("stream"):
        raise UnsupportedParameter("stream", "a batch's replies are whole")
    if body.get("priority") is not None:
        raise UnsupportedParameter("priority", "a batch's requests run behind all others")
    try:
        return orjson.dumps({**body, "priority": LIMITS.priority})
    except orjson.JSONEncodeError:
        raise InvalidRequest("The body is not valid JSON", code="invalid_json") from None


def _scope(path: str, caller: Caller) -> Scope:
    request_id = uuid.uuid4().hex
    REQUEST_ID.set(request_id)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("ascii"),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
        "quire.request_id": request_id,
        "quire.arrival": time.monotonic(),
        "quire.timeout": None,
        "quire.caller": caller,
    }

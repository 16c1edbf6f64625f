"""The admin routes, on a listener of their own that only this machine can reach.

POST /reset_prefix_cache     forget cached prompts
GET  /v1/requests            what is under way, and the latest that ended: times and counts, no text
GET  /v1/requests/{id}       one of them, by its x-request-id
POST /drain                  not ready from now on; streams finish; the process waits for SIGTERM
POST /log-level              {"level": "debug"}
"""

import logging
import re
from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import TypedDict

from quire.config.settings import ServeSettings
from quire.server.auth import ApiKeys, AuthMiddleware
from quire.server.engine_client import EngineClient
from quire.server.errors import Forbidden, NotFound
from quire.server.framework_errors import ERROR_HANDLERS, MAX_ECHO_CHARS
from quire.server.lifecycle import Lifecycle
from quire.server.logs import set_log_level
from quire.server.metrics import Metrics
from quire.server.middleware import BodyMiddleware, RequestMiddleware
from quire.server.timelines import RequestTimeline

MAX_BODY_BYTES = 4096
_LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)

logger = logging.getLogger(__name__)


class LogLevel(BaseModel):
    """The body of POST /log-level."""

    model_config = ConfigDict(extra="forbid")

    level: Literal["debug", "info", "warning", "error"] = Field(
        description="The least that is logged."
    )


class Done(TypedDict):
    status: str


class Draining(TypedDict):
    status: Literal["draining"]
    live_streams: int


class RequestList(TypedDict):
    object: Literal["list"]
    data: list[RequestTimeline]


def build_admin_app(
    settings: ServeSettings,
    client: EngineClient,
    keys: ApiKeys,
    metrics: Metrics,
    lifecycle: Lifecycle,
) -> FastAPI:
    """The application of the admin listener; every route asks for one of `keys` if there are any."""
    app = FastAPI(
        title="Quire admin",
        version=version("quire"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestMiddleware, metrics=metrics),
            Middleware(LocalMiddleware),
            Middleware(AuthMiddleware, keys=keys, public_paths=frozenset()),
            Middleware(BodyMiddleware, max_bytes=MAX_BODY_BYTES, seconds=settings.body_timeout),
        ],
        exception_handlers=dict(ERROR_HANDLERS),
    )
    app.include_router(_build_router(client, lifecycle))
    return app


def _build_router(client: EngineClient, lifecycle: Lifecycle) -> APIRouter:
    router = APIRouter(tags=["admin"])

    @router.post("/reset_prefix_cache")
    async def reset_prefix_cache() -> Done:
        """Forget cached prompts."""
        logger.warning("prefix cache reset")
        client.reset_prefix_cache()
        return {"status": "reset"}

    @router.get("/v1/requests")
    async def list_requests() -> RequestList:
        """What is under way, and the latest that ended: times and counts, no text."""
        return {"object": "list", "data": client.timelines.list()}

    @router.get("/v1/requests/{request_id:path}")
    async def show_request(request_id: str) -> RequestTimeline:
        """One of them, by its x-request-id."""
        found = client.timelines.find(request_id)
        if found is None:
            raise NotFound(f"No such request, or not any more: {request_id[:MAX_ECHO_CHARS]}")
        return found

    @router.post("/drain")
    async def drain() -> Draining:
        """Not ready from now on; streams finish; the process waits for SIGTERM."""
        logger.warning("draining live_streams=%d", client.num_live)
        lifecycle.on_draining()
        client.begin_drain()
        return {"status": "draining", "live_streams": client.num_live}

    @router.post("/log-level")
    async def change_log_level(wanted: LogLevel) -> Done:
        """Log more or less."""
        set_log_level(wanted.level)
        logger.warning("log level changed level=%s", wanted.level)
        return {"status": wanted.level}

    return router


class LocalMiddleware:
    """Refuses what a browser sends on behalf of a page, by its Origin or by a Host that a name
    server made this machine's (CVE-2025-62593)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if "origin" in headers or not _LOCAL_HOST.fullmatch(headers.get("host", "")):
                raise Forbidden("The admin routes are for this machine's own tools")
        await self._app(scope, receive, send)

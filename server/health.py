"""Probes, version and metrics.

/livez     200 as long as this process answers: a restart would only lose streams
/readyz    200 while the engine serves, else 503 with phase and reason: send no traffic
/startupz  503 until the engine served for the first time, then 200 for good
/health    as /readyz, where vLLM's users look for it
/ping      as /readyz, where SageMaker looks for it
/version   {"version": ...}
/metrics   Prometheus' text format
"""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics

RETRY_AFTER_SECONDS = 1


def build_health_router(lifecycle: Lifecycle, metrics: Metrics) -> APIRouter:
    """The routes of this module's table, each for GET and HEAD."""
    distribution_version = version("quire")

    def livez() -> Response:
        return JSONResponse({"status": "alive"})

    def readyz() -> Response:
        return _probe(lifecycle, lifecycle.is_ready, "ready")

    def startupz() -> Response:
        return _probe(lifecycle, lifecycle.has_started, "started")

    def show_version() -> Response:
        return JSONResponse({"version": distribution_version})

    def show_metrics() -> Response:
        text, content_type = metrics.render()
        return Response(text, media_type=content_type)

    router = APIRouter(tags=["operations"])
    _add(
        router, "/livez", livez, "200 as long as the process answers: a restart would lose streams."
    )
    ready = "200 while the engine serves, else 503 with phase and reason: send no traffic."
    _add(router, "/readyz", readyz, ready, unavailable=True)
    started = "503 until the engine served for the first time, then 200 for good."
    _add(router, "/startupz", startupz, started, unavailable=True)
    for name in ("health", "ping"):
        _add(router, f"/{name}", readyz, "As /readyz.", unavailable=True)
    _add(router, "/version", show_version, "The server's version.")
    _add(router, "/metrics", show_metrics, "Prometheus' text format.", media_type="text/plain")
    return router


def _add(
    router: APIRouter,
    path: str,
    reply: Callable[[], Response],
    description: str,
    *,
    unavailable: bool = False,
    media_type: str = "application/json",
) -> None:
    async def endpoint() -> Response:
        return reply()

    name = path.strip("/")
    documented: dict[int | str, dict[str, Any]] = {
        200: {"description": "OK", "content": {media_type: {}}}
    }
    if unavailable:
        documented[503] = {"description": "Not yet, or not now", "content": {media_type: {}}}
    router.add_api_route(
        path,
        endpoint,
        methods=["GET"],
        name=name,
        description=description,
        response_class=Response,
        responses=documented,
    )
    router.add_api_route(path, endpoint, methods=["HEAD"], name=name, include_in_schema=False)


def _probe(lifecycle: Lifecycle, is_good: bool, good: str) -> Response:
    if is_good:
        return JSONResponse({"status": good})
    return JSONResponse(
        {
            "status": f"not {good}",
            "phase": lifecycle.phase,
            "percent": int(lifecycle.fraction * 100),
            "seconds": round(time.monotonic() - lifecycle.since, 1),
            "reason": lifecycle.reason,
        },
        status_code=503,
        headers={"retry-after": str(RETRY_AFTER_SECONDS)},
    )

"""The ASGI application: routes, and the layers around them."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from quire.config.limits import LIMITS
from quire.config.settings import ServeSettings
from quire.server.auth import ApiKeys, AuthMiddleware
from quire.server.engine import Engine
from quire.server.framework_errors import ERROR_HANDLERS
from quire.server.health import build_health_router
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.middleware import BodyMiddleware, RequestMiddleware
from quire.server.openai.router import build_root_router, build_router


class _Documented(FastAPI):
    """An application whose OpenAPI document tells every limit, by the name that errors give it."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        settings: ServeSettings = self.state.settings
        document["info"]["x-limits"] = {
            "max_request_bytes": int(settings.max_request_bytes),
            **asdict(LIMITS),
        }
        return document


def build_app(
    settings: ServeSettings,
    engine: Engine,
    api_keys: ApiKeys,
    metrics: Metrics,
    lifecycle: Lifecycle,
) -> FastAPI:
    """The daemon's application. `app.state.served` and `grammars` are None until the model's
    folder is known.

    Endpoints raise ApiError; the outermost layer turns it, and anything else, into a reply.
    """
    app = _Documented(
        title="Quire",
        version=version("quire"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestMiddleware, metrics=metrics),
            Middleware(AuthMiddleware, keys=api_keys),
            Middleware(
                BodyMiddleware,
                max_bytes=settings.max_request_bytes,
                seconds=settings.body_timeout,
            ),
        ],
        exception_handlers=dict(ERROR_HANDLERS),
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.served = None
    app.state.grammars = None
    app.state.metrics = metrics
    app.include_router(build_health_router(lifecycle, metrics))
    app.include_router(build_router())
    app.include_router(build_root_router())
    metrics.watch(lifecycle)
    return app

"""The ASGI application: routes, and the layers around them."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from quire.config.limits import LIMITS
from quire.config.settings import ServeSettings
from quire.server.anthropic.router import build_messages_router
from quire.server.auth import ApiKeys, AuthMiddleware
from quire.server.batches.routes import build_batch_router
from quire.server.engine import Engine
from quire.server.framework_errors import ERROR_HANDLERS
from quire.server.generate.router import build_generate_router
from quire.server.health import build_health_router
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.middleware import BodyMiddleware, RequestMiddleware
from quire.server.openai.responses.store import ResponseStore
from quire.server.openai.router import build_root_router, build_router
from quire.server.tracing import Tracing


class _Documented(FastAPI):
    """An application whose OpenAPI document tells every limit, by the name that errors give it."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        settings: ServeSettings = self.state.settings
        document["info"]["x-limits"] = {
            "max_request_bytes": int(settings.max_request_bytes),
            "max_file_size": int(settings.max_file_size),
            **asdict(LIMITS),
        }
        # FastAPI's own answer to a wrong field, which `framework_errors` replaces.
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(name, None)
        return document


def build_app(
    settings: ServeSettings,
    engine: Engine,
    api_keys: ApiKeys,
    metrics: Metrics,
    lifecycle: Lifecycle,
    *,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The daemon's application. `app.state.served` and `grammars` are None until the model's
    folder is known, `app.state.batches` where there is no folder for them.

    Endpoints raise ApiError; the outermost layer turns it, and anything else, into a reply.
    """
    app = _Documented(
        title="Quire",
        version=version("quire"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestMiddleware, metrics=metrics, tracing=tracing),
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
    app.state.batches = None
    app.state.metrics = metrics
    responses = ResponseStore(settings.responses_store_bytes, settings.responses_store_count)
    app.state.responses = responses
    metrics.watch_responses(lambda: len(responses), lambda: responses.num_bytes)
    app.include_router(build_health_router(lifecycle, metrics))
    app.include_router(build_router())
    app.include_router(build_batch_router())
    app.include_router(build_root_router())
    app.include_router(build_messages_router())
    app.include_router(build_generate_router())
    metrics.watch(lifecycle)
    return app

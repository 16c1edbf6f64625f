"""The ASGI application: routes, the layers around them, and errors as OpenAI's clients expect them."""

from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from quire.config.settings import ServeSettings
from quire.server.auth import ApiKeys, AuthMiddleware
from quire.server.engine import Engine
from quire.server.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from quire.server.health import build_health_router
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.middleware import BodyMiddleware, RequestMiddleware, error_response
from quire.server.openai.router import build_root_router, build_router

_MAX_ECHO_CHARS = 200


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
    app = FastAPI(
        title="Quire",
        version=version("quire"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestMiddleware, metrics=metrics),
            Middleware(AuthMiddleware, keys=api_keys),
            Middleware(BodyMiddleware, max_bytes=settings.max_request_bytes),
        ],
        exception_handlers={HTTPException: _on_http, RequestValidationError: _on_invalid},
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


async def _on_http(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: no route, another method, an unreadable body."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:_MAX_ECHO_CHARS]
    answer: ApiError
    if error.status_code == NotFound.status:
        answer = NotFound(f"No such route: {request.method} {path}")
    elif error.status_code == MethodNotAllowed.status:
        answer = MethodNotAllowed(f"{path} does not take {request.method}")
    elif error.status_code < InternalError.status:
        answer = InvalidRequest(str(error.detail))
    else:
        raise error
    response = error_response(answer)
    response.headers.update(error.headers or {})
    return response


async def _on_invalid(request: Request, error: Exception) -> Response:
    """A field that a typed endpoint refused: 400, naming it by its dotted path."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # The location begins with where the field is: body, query, path or header.
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return error_response(InvalidRequest(message, param=param))

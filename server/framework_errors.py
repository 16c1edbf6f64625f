"""What FastAPI refuses by itself, with OpenAI's error body."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from quire.server.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from quire.server.middleware import error_response

MAX_ECHO_CHARS = 200


async def _on_http(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: no route, another method, an unreadable body."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:MAX_ECHO_CHARS]
    answer: ApiError
    if error.status_code == NotFound.status:
        answer = NotFound(f"No such route: {request.method} {path}")
    elif error.status_code == MethodNotAllowed.status:
        answer = MethodNotAllowed(f"{path} does not take {request.method}")
    elif error.status_code < InternalError.status:
        answer = InvalidRequest(str(error.detail))
    else:
        raise error
    response = error_response(answer, request.scope)
    response.headers.update(error.headers or {})
    return response


async def _on_invalid(request: Request, error: Exception) -> Response:
    """A field that a typed endpoint refused: 400, naming it by its dotted path."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # The location begins with where the field is: body, query, path or header.
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return error_response(InvalidRequest(message, param=param), request.scope)


ERROR_HANDLERS: Mapping[Any, Callable[[Request, Exception], Coroutine[Any, Any, Response]]] = {
    HTTPException: _on_http,
    RequestValidationError: _on_invalid,
}

"""An error's JSON body in the form that the clients of a route read."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import Scope

from quire.server.anthropic.error_body import anthropic_body
from quire.server.errors import ApiError
from quire.server.generate.error_body import tgi_body

ErrorBody = Callable[[ApiError], Mapping[str, Any]]

ERROR_BODY = "quire.error_body"
"""The key in a request's scope for a form that its endpoint, not its path, decided."""


def openai_body(error: ApiError) -> Mapping[str, Any]:
    """https://platform.openai.com/docs/guides/error-codes"""
    return error.body


BODIES: Mapping[str, ErrorBody] = {
    "/v1/messages": anthropic_body,
    "/generate": tgi_body,
    "/generate_stream": tgi_body,
    "/info": tgi_body,
}
"""Paths whose clients read another form than OpenAI's, there and below."""


def error_body_of(scope: Scope) -> ErrorBody:
    """The form for a request, by its raw path: it may have reached no route."""
    if ERROR_BODY in scope:
        form: ErrorBody = scope[ERROR_BODY]
        return form
    path = scope.get("path", "")
    return next(
        (body for place, body in BODIES.items() if path == place or path.startswith(f"{place}/")),
        openai_body,
    )

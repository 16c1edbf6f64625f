"""An error's JSON body in the form that the clients of a route read."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import Scope

from quire.server.errors import ApiError

ErrorBody = Callable[[ApiError], Mapping[str, Any]]


def openai_body(error: ApiError) -> Mapping[str, Any]:
    """https://platform.openai.com/docs/guides/error-codes"""
    return error.body


BODIES: tuple[tuple[str, ErrorBody], ...] = ()
"""Beginnings of paths whose clients read another form than OpenAI's."""


def error_body_of(scope: Scope) -> ErrorBody:
    """The form for a request, by its raw path: it may have reached no route."""
    path = scope.get("path", "")
    return next((body for prefix, body in BODIES if path.startswith(prefix)), openai_body)

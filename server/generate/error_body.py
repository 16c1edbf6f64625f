"""Errors as clients of text-generation-inference read them."""

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from quire.server.errors import ApiError


class ErrorReply(TypedDict):
    error: str
    error_type: str


def tgi_body(error: ApiError) -> Mapping[str, Any]:
    """`ErrorResponse` of router/src/lib.rs; the status stays ours."""
    if error.status in (429, 503):
        kind = "overloaded"
    else:
        kind = "validation" if error.status < 500 else "generation"
    reply: ErrorReply = {"error": error.message, "error_type": kind}
    return reply

"""Errors as Anthropic's clients read them."""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from quire.server.errors import ApiError, ContextLengthExceeded
from quire.server.logs import REQUEST_ID

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ErrorDetails(TypedDict):
    error_code: str
    unsupported: list[str]


class ErrorObject(TypedDict):
    type: str
    message: str
    details: NotRequired[ErrorDetails]


class ErrorReply(TypedDict):
    type: Literal["error"]
    error: ErrorObject
    request_id: str | None


def anthropic_body(error: ApiError) -> Mapping[str, Any]:
    """https://platform.claude.com/docs/en/api/errors"""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    # Anthropic's own words, which agents look for to shorten their history.
    is_long = isinstance(error, ContextLengthExceeded)
    message = f"prompt is too long: {error.message}" if is_long else error.message
    reply: ErrorReply = {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": REQUEST_ID.get(),
    }
    if error.param == "thread":
        # The client's tool runner asks for one first, and on this goes on without.
        details: ErrorDetails = {
            "error_code": "thread_unsupported_request",
            "unsupported": ["thread"],
        }
        reply["error"]["details"] = details
    return reply

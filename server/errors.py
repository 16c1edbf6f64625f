"""Errors a client sees, each with its HTTP status and its place in OpenAI's error body.

    ApiError
      InvalidRequest             400  invalid_request_error
        UnsupportedParameter     400  code unsupported_parameter
        ContextLengthExceeded    400  code context_length_exceeded
      Unauthorized               401  authentication_error, code invalid_api_key
      Forbidden                  403  permission_error, code forbidden
      NotFound                   404  invalid_request_error, code not_found
        ModelNotFound            404  code model_not_found
      MethodNotAllowed           405  invalid_request_error, code method_not_allowed
      RequestTimeout             408  invalid_request_error, code request_timeout
      PayloadTooLarge            413  invalid_request_error, code payload_too_large
      UnsupportedMediaType       415  invalid_request_error, code unsupported_media_type
      Overloaded                 429  rate_limit_error, code overloaded        + Retry-After
        KeyOverloaded            429  code key_concurrency_limit
      ClientLeft                 499  invalid_request_error, code client_left, read by logs alone
      GenerationFailed           500  api_error, code generation_failed        + x-should-retry: false
      InternalError              500  api_error, code internal_error
      EngineUnavailable          503  api_error, code engine_unavailable       + Retry-After
      StateUnavailable           503  api_error, code state_unavailable        + x-should-retry: false
      DeadlineExceeded           504  api_error, code deadline_exceeded        + x-should-retry: false
      StorageFull                507  api_error, code storage_full             + x-should-retry: false

Messages are from this catalogue and from our own checks; an exception's text never reaches a client.
"""

from collections.abc import Mapping, Sequence
from typing import Any

MAX_ERROR_CHARS = 2048
"""Of an error's message and of its param: they may quote what the client sent, of any length."""


class ApiError(Exception):
    """An HTTP error with OpenAI's nested body. `param` is the dotted path of the field at fault."""

    status = 500
    type = "api_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = _clipped(message)
        self.param = None if param is None else _clipped(param)
        self.code = code or type(self).code

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> Mapping[str, str]:
        return {}


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else f"{text[:MAX_ERROR_CHARS]}..."


class InvalidRequest(ApiError):
    """A field is missing, of the wrong type or out of range."""

    status = 400
    type = "invalid_request_error"


class UnsupportedParameter(InvalidRequest):
    """A field that OpenAI or a peer knows and Quire does not serve."""

    code = "unsupported_parameter"

    def __init__(self, param: str, hint: str = "") -> None:
        message = f"'{param}' is not supported" + (f": {hint}" if hint else "")
        super().__init__(message, param=param)


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or the prompt with the explicitly asked output, exceeds the context."""

    code = "context_length_exceeded"


class Unauthorized(ApiError):
    """No API key, or one that is not in the key file."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"www-authenticate": "Bearer"}


class Forbidden(ApiError):
    """A browser's request, or another place's, at a door that is for this machine's tools."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class NotFound(ApiError):
    """No such route or object."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """The model is not one of the served names."""

    code = "model_not_found"

    def __init__(self, model: str, served: Sequence[str]) -> None:
        names = ", ".join(f"'{name}'" for name in served)
        super().__init__(
            f"The model '{model}' does not exist; this server serves {names}", param="model"
        )


class MethodNotAllowed(ApiError):
    """The route exists with other methods."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RequestTimeout(ApiError):
    """The request did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"connection": "close"}


class PayloadTooLarge(ApiError):
    """The body is over `max_request_bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class UnsupportedMediaType(ApiError):
    """The body is not application/json, or is compressed."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class _RetryLater(ApiError):
    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> Mapping[str, str]:
        return {
            "retry-after": str(max(1, round(self.retry_after_seconds))),
            "retry-after-ms": str(max(1, round(self.retry_after_seconds * 1000))),
        }


class Overloaded(_RetryLater):
    """The queue is full. `queue_position`: the place a request would have had in it, from 1."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"

    def __init__(
        self, message: str, retry_after_seconds: float, *, queue_position: int | None = None
    ) -> None:
        super().__init__(message, retry_after_seconds)
        self.queue_position = queue_position

    @property
    def headers(self) -> Mapping[str, str]:
        headers = dict(super().headers)
        if self.queue_position is not None:
            headers["x-queue-position"] = str(self.queue_position)
        return headers


class KeyOverloaded(Overloaded):
    """The caller's key has as many requests under way as it may."""

    code = "key_concurrency_limit"


class EngineUnavailable(_RetryLater):
    """The model is loading, draining, or the worker died too often."""

    status = 503
    code = "engine_unavailable"


class StateUnavailable(ApiError):
    """What --state-dir holds cannot be read or written; the log says why, and a person must see to
    it."""

    status = 503
    code = "state_unavailable"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "false"}


class StorageFull(StateUnavailable):
    """The state folder has no room, by its own limit or the disk's."""

    status = 507
    code = "storage_full"


class ClientLeft(ApiError):
    """The client closed the connection before there was a reply; nginx's status for it."""

    status = 499
    type = "invalid_request_error"
    code = "client_left"

    def __init__(self) -> None:
        super().__init__("The client left")


class DeadlineExceeded(ApiError):
    """The request's own time limit passed, in the queue or later; what ran for it was aborted.

    Whether another attempt makes sense is for the client to say: it set the limit.
    """

    status = 504
    code = "deadline_exceeded"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The request was not finished within its time limit of {seconds:g} s "
            "('timeout' or x-request-timeout)"
        )

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "false"}


class GenerationFailed(ApiError):
    """This request failed in the engine and would fail again."""

    code = "generation_failed"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "false"}


class InternalError(ApiError):
    """A bug of ours; the log has the details under the request id."""

    code = "internal_error"

"""What the OpenAPI document says of an endpoint: its body, replies, and errors."""

import functools
from typing import Any

from pydantic import TypeAdapter

from quire.config.limits import LIMITS
from quire.server.openai.replies import ErrorReply
from quire.server.openai.request_model import RequestModel

ERRORS = {
    400: "A field is wrong, or not supported.",
    401: "No valid API key.",
    404: "No such model, file or batch; or not turned on.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "The queue is full, or the key has too many requests; see Retry-After.",
    500: "The model failed on this request.",
    503: "Not ready, or shutting down; see Retry-After.",
    504: "The request's own time limit passed.",
}
_TIMEOUT_HEADER = {
    "name": "x-request-timeout",
    "in": "header",
    "description": "Seconds after which the request is given up; the shorter of this and timeout.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": LIMITS.timeout_seconds},
}

Responses = dict[int | str, dict[str, Any]]


def replies(
    whole: Any, events: str = "", *, event: Any = dict[str, Any], error: Any = ErrorReply
) -> Responses:
    """`whole` is the type of the reply that is not streamed, `events` what a stream consists of,
    `event` the type of each one's data, unless it is an error or OpenAI's [DONE]."""
    ok: dict[str, Any] = {"model": whole}
    if events:
        ok["content"] = {"text/event-stream": {"schema": _event_schema(events, event, error)}}
    return {200: ok, **errors(*ERRORS, model=error)}


def _event_schema(description: str, *kinds: Any) -> dict[str, Any]:
    """Of one server-sent event: OpenAPI before 3.2 has no other place for what a stream is of."""
    payload = {
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_schema_of(kind) for kind in kinds]},
    }
    data = {"type": "string", "if": {"const": "[DONE]"}, "else": payload}
    properties = {"event": {"type": "string"}, "data": data}
    return {"type": "object", "description": description, "properties": properties}


def errors(*statuses: int, model: Any = ErrorReply) -> Responses:
    """By schema, not by model: FastAPI takes a millisecond for each model that it is given."""
    content = {"application/json": {"schema": _schema_of(model)}}
    return {status: {"content": content, "description": ERRORS[status]} for status in statuses}


def generation(*kinds: type[RequestModel]) -> dict[str, Any]:
    """A request body, and the header that says how long its reply may take."""
    return {**body(*kinds), "parameters": [_TIMEOUT_HEADER]}


def body(*kinds: type[RequestModel]) -> dict[str, Any]:
    """A request body of one of `kinds`."""
    schemas = [_schema_of(kind) for kind in kinds]
    one = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": one}}}}


@functools.cache
def _schema_of(kind: Any) -> Any:
    """The JSON Schema of a type, without references. Shared: not to be changed."""
    schema = TypeAdapter(kind).json_schema()
    return _inlined(schema, schema.pop("$defs", {}))


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """`schema` with its references replaced by what they mean; none of ours is recursive."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}

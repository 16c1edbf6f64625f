"""A request's bytes to its checked object, or the error that says what is wrong with them."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Receive

from quire.config.limits import LIMITS
from quire.server.errors import InvalidRequest, UnsupportedMediaType, UnsupportedParameter
from quire.server.openai.request_model import RequestModel
from quire.server.openai.unknown_fields import (
    MAX_SHOWN_CHARACTERS,
    MAX_SHOWN_FIELDS,
    check_unknown,
    printable,
    shown_name,
)

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=RequestModel)
Kind = type[R] | Callable[[Mapping[str, Any]], type[R]]
"""A request's class, or a function that tells it from the fields of the body."""

LARGE_BODY_BYTES = 65536
MAX_WARNING_CHARACTERS = 2048


async def read_request(http: Request, kind: Kind[R]) -> R:
    """The body as a `kind`.

    Raises:
        UnsupportedMediaType: not application/json.
        InvalidRequest, UnsupportedParameter: as `parse` and `check_unknown`.
    """
    media_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        shown = media_type[:MAX_SHOWN_CHARACTERS] or "missing"
        raise UnsupportedMediaType(f"Content-Type must be application/json, not {shown}")
    body = await http.body()
    strict = http.app.state.settings.strict
    if len(body) > LARGE_BODY_BYTES:
        # Checking it takes long enough to hold up every stream.
        return await asyncio.to_thread(_known, body, kind, strict=strict)
    return _known(body, kind, strict=strict)


def _known(body: bytes, kind: Kind[R], *, strict: bool) -> R:
    request = parse(body, kind)
    check_unknown(request, strict=strict)
    return request


async def disconnect(receive: Receive) -> None:
    """Wait until the client has left. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def parse(body: bytes, kind: Kind[R]) -> R:
    """Raises InvalidRequest or UnsupportedParameter naming the first field at fault."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON (line {error.lineno}, column {error.colno})",
            code="invalid_json",
        ) from None
    if not isinstance(data, dict):
        raise InvalidRequest("The body must be a JSON object")
    # Each level opens with a bracket, so few brackets (in strings or not) mean few levels.
    may_be_deep = body.count(b"{") + body.count(b"[") > LIMITS.json_depth
    if may_be_deep and is_deeper(data, LIMITS.json_depth):
        name = next(name for name, value in data.items() if is_deeper(value, LIMITS.json_depth - 1))
        raise InvalidRequest(
            f"'{shown_name(name)}': the body is nested {_depth(data)} levels deep; the limit is "
            f"{LIMITS.json_depth}",
            param=shown_name(name),
            code="invalid_value",
        )
    return checked(kind if isinstance(kind, type) else kind(data), data)


def checked(kind: type[R], data: Mapping[str, Any]) -> R:
    """`data` as a `kind`.

    Raises:
        InvalidRequest, UnsupportedParameter: naming the first field at fault.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        # pydantic's errors carry the whole input; chaining them would put prompts into the log.
        raise _client_error(error) from None


def warning_headers(request: RequestModel, *warnings: str) -> dict[str, str]:
    """The header that names fields nobody knows and says other `warnings`, which is also logged;
    none when there is nothing to say."""
    said = [_unknown_fields(request), *warnings[:MAX_SHOWN_FIELDS]]
    if len(warnings) > MAX_SHOWN_FIELDS:
        said.append(f"{len(warnings) - MAX_SHOWN_FIELDS} more warnings")
    shown = "; ".join(printable(text)[:MAX_WARNING_CHARACTERS] for text in said if text)
    return {"x-quire-warning": shown} if shown else {}


def _unknown_fields(request: RequestModel) -> str:
    names = request.unknown_names
    if not names:
        return ""
    shown = ", ".join(map(shown_name, names[:MAX_SHOWN_FIELDS]))
    if len(names) > MAX_SHOWN_FIELDS:
        shown += f" and {len(names) - MAX_SHOWN_FIELDS} more"
    logger.warning("unknown fields ignored fields=%s", shown)
    return f"unknown fields ignored: {shown}"


def is_deeper(data: Any, levels: int) -> bool:
    """Whether objects and lists in `data` are nested more than `levels` deep."""
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(levels):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return bool(level)


def _depth(data: Any) -> int:
    # The JSON reader has a limit of its own, far below what this would take long for.
    return next(levels for levels in itertools.count(1) if not is_deeper(data, levels))


def _client_error(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    # A tag in angle brackets names the branch of a union, not a field.
    parts = [str(part) for part in first["loc"] if not str(part).startswith("<")]
    param = ".".join([*parts, *filter(None, [context.get("field")])])
    if first["type"] == "unsupported":
        return UnsupportedParameter(param, context["hint"])
    if first["type"] == "missing":
        return InvalidRequest(f"'{param}' is required", param=param, code="missing_field")
    if first["type"] == "refused":
        return InvalidRequest(f"'{param}' {first['msg']}", param=param, code="invalid_value")
    message = first["msg"].removeprefix("Input ").rstrip(".")
    return InvalidRequest(
        f"'{param}' {message[:1].lower()}{message[1:]} (given: {_shown(first['input'])})",
        param=param,
        code="invalid_value",
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = orjson.dumps(value).decode()
    if len(text) > MAX_SHOWN_CHARACTERS:
        return f"{text[:MAX_SHOWN_CHARACTERS]}..."
    return text

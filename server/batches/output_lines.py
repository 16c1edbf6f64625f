"""The lines of output and error files, each a JSON object and a line feed."""

import uuid
from typing import Literal

import orjson

WhyNot = Literal["batch_expired", "batch_cancelled"]

_MESSAGES: dict[WhyNot, str] = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "The batch was cancelled before this request was executed.",
}


def response_line(custom_id: str, *, status: int, request_id: str, body: bytes) -> bytes:
    """Of a request that was answered; `body` is the answer, JSON."""
    response = {"status_code": status, "request_id": request_id, "body": orjson.Fragment(body)}
    return _line(custom_id, response, None)


def unfinished_line(custom_id: str, code: WhyNot) -> bytes:
    """Of a request that was not."""
    return _line(custom_id, None, {"code": code, "message": _MESSAGES[code]})


def _line(custom_id: str, response: object, error: object) -> bytes:
    return orjson.dumps(
        {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )

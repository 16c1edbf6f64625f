"""The input file of a batch: each line checked before any of them runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from quire.config.limits import LIMITS
from quire.server.batches.line_table import Line
from quire.server.batches.schema import BatchError

_AT_ONCE = 500
_SHOWN = 64
_FIELDS = ("custom_id", "method", "url", "body")


class InputFile:
    """Reads the lines of `path`; what is wrong with them is in `errors` when all are read.

    `max_line` is the most bytes of a line. `model` is what the first line asks for.
    """

    def __init__(self, path: Path, endpoint: str, *, max_line: int) -> None:
        self.errors: list[BatchError] = []
        self.model: str | None = None
        self._path = path
        self._endpoint = endpoint
        self._max_line = max_line
        self._lines_of: dict[str, int] = {}

    def lines(self) -> Iterator[list[Line]]:
        """The lines, some at a time, until there are too many errors."""
        good: list[Line] = []
        try:
            for number, offset, text in self._split():
                if (custom_id := self._checked(number, text)) is not None:
                    good.append(Line(number, custom_id, offset, len(text)))
                if len(self.errors) == LIMITS.batch_errors:
                    return
                if len(good) == _AT_ONCE:
                    yield good
                    good = []
            if not self._lines_of and not self.errors:
                raise _Wrong("empty_file", "The input file holds no requests.")
        except FileNotFoundError:
            self._add(None, _Wrong("file_not_found", "The input file is gone from the disk."))
        except _Wrong as error:
            self._add(None, error)
        yield good

    def _split(self) -> Iterator[tuple[int, int, bytes]]:
        """Number, offset and bytes of the lines that are not blank."""
        number = offset = count = 0
        with self._path.open("rb") as source:
            while text := source.readline(self._max_line + 1):
                number += 1
                if len(text) > self._max_line:
                    limit = f"{self._max_line} bytes (max_request_bytes)"
                    raise _Wrong("line_too_long", f"Line {number} has more than {limit}.")
                if text.strip():
                    count += 1
                    if count > LIMITS.batch_lines:
                        message = f"The input file holds more than {LIMITS.batch_lines} requests."
                        raise _Wrong("too_many_requests", message)
                    yield number, offset, text
                offset += len(text)

    def _checked(self, number: int, text: bytes) -> str | None:
        """The line's custom_id; None when something is wrong with it."""
        try:
            line = _parsed(text)
            self._check_target(line)
            self._check_unique(line["custom_id"], number)
        except _Wrong as error:
            self._add(number, error)
            return None
        if len(self._lines_of) == 1:
            model = line["body"].get("model")
            self.model = model if isinstance(model, str) else None
        return str(line["custom_id"])

    def _check_target(self, line: dict[str, Any]) -> None:
        if line["method"] != "POST":
            raise _Wrong("invalid_method", "'method' must be 'POST'.", "method")
        if line["url"] != self._endpoint:
            message = f"'url' must be the batch's endpoint, '{self._endpoint}'."
            raise _Wrong("mismatched_url", message, "url")

    def _check_unique(self, custom_id: str, number: int) -> None:
        first = self._lines_of.setdefault(custom_id, number)
        if first != number:
            message = (
                f"The custom_id for this request is a duplicate of that on line {first}. The "
                "custom_id parameter must be unique for each request in a batch."
            )
            raise _Wrong("duplicate_custom_id", message, "custom_id")

    def _add(self, line: int | None, error: "_Wrong") -> None:
        message, param = error.message, error.param
        self.errors.append({"code": error.code, "line": line, "message": message, "param": param})


class _Wrong(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise _Wrong("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not isinstance(line, dict):
        raise _Wrong("invalid_json_line", "This line is not a JSON object.")
    for name in _FIELDS:
        if line.get(name) is None:
            message = f"Missing required parameter: '{name}'."
            raise _Wrong("missing_required_parameter", message, name)
    for name in line:
        if name not in _FIELDS:
            message = f"Unknown parameter: '{name[:_SHOWN]}'."
            raise _Wrong("unknown_parameter", message, name[:_SHOWN])
    custom_id, limit = line["custom_id"], LIMITS.custom_id_chars
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= limit:
        message = f"'custom_id' must be a string of 1 to {limit} characters."
        raise _Wrong("invalid_value", message, "custom_id")
    if not isinstance(line["body"], dict):
        raise _Wrong("invalid_value", "'body' must be a JSON object.", "body")
    return line


def read_body(path: Path, line: Line) -> dict[str, Any]:
    """The `body` of a line that was checked."""
    with path.open("rb") as source:
        source.seek(line.offset)
        body: dict[str, Any] = orjson.loads(source.read(line.size))["body"]
    return body

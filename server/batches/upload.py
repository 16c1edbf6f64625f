"""A file on its way from a client to the disk: multipart/form-data, never whole in memory."""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from quire.config.limits import LIMITS
from quire.server.batches.schema import FileUpload
from quire.server.batches.state_folder import StateFolder, disk_errors, open_part, sync
from quire.server.errors import (
    ClientLeft,
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from quire.server.openai.body import parse

WRITE_BYTES = 1024**2
"""Written at once."""

_NESTED = re.compile(r"(\w+)\[(\w+)\]")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file in `part`, on the disk, `size` bytes of it taken from the quota."""

    form: FileUpload
    filename: str
    part: Path
    size: int


@contextlib.asynccontextmanager
async def receive_upload(
    http: Request, folder: StateFolder, *, max_size: int, seconds: float
) -> AsyncIterator[Upload]:
    """The request's file, for the block to keep: when the block fails, nothing is left of it.

    `seconds`: what the body may take, and so many more as its bytes need at the slowest rate.

    Raises:
        UnsupportedMediaType: not multipart/form-data, or compressed.
        PayloadTooLarge: the file has more than `max_size` bytes.
        StorageFull: the folder has no room for it.
        InvalidRequest: the form is wrong.
        RequestTimeout, ClientLeft: it did not come.
    """
    parser = _Parser(_boundary(http))
    _check_length(http, max_size)
    part, size = folder.new_part(), 0
    try:
        # Around the file, as closing one may write what it holds back.
        with disk_errors(), await asyncio.to_thread(open_part, part) as sink:
            async for data in _chunks(http, parser, seconds):
                if size + len(data) > max_size:
                    raise _too_large(max_size)
                folder.quota.take(len(data))
                size += len(data)
                await asyncio.to_thread(sink.write, data)
            form = parser.form()
            await asyncio.to_thread(sync, sink)
        yield Upload(form, parser.filename, part, size)
    except BaseException:
        folder.quota.add(-size)
        raise
    finally:
        await asyncio.to_thread(part.unlink, missing_ok=True)


async def _chunks(http: Request, parser: "_Parser", seconds: float) -> AsyncIterator[bytes]:
    """The file's bytes as they come, in pieces worth a write."""
    began, received, is_last = time.monotonic(), 0, False
    while not is_last:
        allowed = seconds + received / LIMITS.min_upload_bytes_per_second
        try:
            async with asyncio.timeout(max(0.0, began + allowed - time.monotonic())):
                message = await http.receive()
        except TimeoutError:
            raise RequestTimeout(
                f"After {allowed:g} s only {received} bytes of the body had arrived"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        received += len(body)
        parser.feed(body)
        if len(parser.data) >= WRITE_BYTES or is_last:
            yield bytes(parser.data)
            parser.data.clear()
    parser.end()


@dataclass
class _Part:
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    name: str = ""
    is_file: bool = False
    disposition: str = ""


class _Parser:
    """Takes a multipart body apart: small fields, and the bytes of the one file in `data`."""

    def __init__(self, boundary: bytes) -> None:
        self.data = bytearray()
        self.filename = ""
        self._fields: dict[str, str] = {}
        self._part = _Part()
        self._has_file = False
        self._has_ended = False
        self._num_parts = 0
        with _form_errors():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )

    def feed(self, body: bytes) -> None:
        """Raises InvalidRequest."""
        with _form_errors():
            self._parser.write(body)

    def end(self) -> None:
        """Raises InvalidRequest: the body is not complete."""
        with _form_errors():
            self._parser.finalize()
        if not self._has_ended:
            raise InvalidRequest("The multipart body ends too early", code="invalid_multipart")

    def form(self) -> FileUpload:
        """The fields beside the file.

        Raises:
            InvalidRequest: there is no file, or a field is wrong.
        """
        if not self._has_file:
            raise InvalidRequest("'file' is required", param="file", code="missing_field")
        form: dict[str, Any] = {}
        for name, value in self._fields.items():
            nested = _NESTED.fullmatch(name)
            if nested is None:
                form[name] = value
                continue
            inner = form.setdefault(nested[1], {})
            if not isinstance(inner, dict) or nested[1] in self._fields:
                raise _twice(nested[1])
            is_number = value.isascii() and value.isdecimal() and len(value) < 16
            inner[nested[2]] = int(value) if is_number else value
        return parse(orjson.dumps(form), FileUpload)

    def _begin_part(self) -> None:
        self._part = _Part()
        self._num_parts += 1
        if self._num_parts > LIMITS.form_fields:
            raise InvalidRequest(f"The form has more than {LIMITS.form_fields} fields")

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.value += data[start:end]

    def _end_header(self) -> None:
        part = self._part
        if part.header.lower() == b"content-disposition":
            part.disposition = part.value.decode("latin-1")
        part.header.clear()
        part.value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self._part.name = name[: LIMITS.form_field_bytes]
        if name != "file":
            return
        if self._has_file:
            raise _twice(name)
        if b"filename" not in options:
            raise InvalidRequest(
                "'file' must be a file, with a filename", param="file", code="invalid_value"
            )
        self._has_file = self._part.is_file = True
        self.filename = _shown(options[b"filename"])

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self.data += data[start:end]
            return
        self._part.value += data[start:end]
        if len(self._part.value) > LIMITS.form_field_bytes:
            raise InvalidRequest(
                f"'{self._part.name}' has more than {LIMITS.form_field_bytes} bytes",
                param=self._part.name,
                code="invalid_value",
            )

    def _end_part(self) -> None:
        part = self._part
        if part.is_file:
            return
        if part.name in self._fields:
            raise _twice(part.name)
        self._fields[part.name] = part.value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._has_ended = True


@contextlib.contextmanager
def _form_errors() -> Iterator[None]:
    try:
        yield
    except FormParserError:
        raise InvalidRequest(
            "The body is not valid multipart/form-data", code="invalid_multipart"
        ) from None


def _twice(name: str) -> InvalidRequest:
    return InvalidRequest(f"'{name}' is given twice", param=name, code="invalid_value")


def _shown(filename: bytes) -> str:
    """The last part of a client's path, as it can be shown."""
    name = os.path.basename(filename.decode("utf-8", "replace").replace("\\", "/"))
    kept = "".join(character for character in name if character.isprintable())
    return kept[: LIMITS.filename_chars] if kept.strip(".") else "upload"


def _boundary(http: Request) -> bytes:
    media_type, options = parse_options_header(http.headers.get("content-type", ""))
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaType("Content-Type must be multipart/form-data, with the file")
    if http.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Content-Encoding: only identity is accepted")
    if not options.get(b"boundary"):
        raise InvalidRequest("Content-Type: multipart/form-data needs a boundary")
    return options[b"boundary"]


def _check_length(http: Request, max_size: int) -> None:
    declared = http.headers.get("content-length", "0")
    if not declared.isdecimal():
        raise InvalidRequest("Content-Length: not a number")
    around = LIMITS.form_fields * (2 * LIMITS.form_field_bytes + LIMITS.header_bytes)
    if int(declared) > max_size + around:
        raise _too_large(max_size)


def _too_large(max_size: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The file has more than {max_size} bytes (max_file_size)")

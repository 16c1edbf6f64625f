"""Logging is configured here and nowhere else; so is the one line that each request leaves.

No prompt, output or key is ever logged. A record's extra fields become `key=value` on the console
and members of the object in JSON; control characters are escaped, so no value can forge a line.
"""

import logging
import logging.config
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from starlette.types import Scope

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that the current task serves; every line it logs carries it."""

QUIET_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health", "/metrics"})
"""Asked every few seconds by machines: their lines are shown at level debug."""

_STANDARD = frozenset(RESERVED_ATTRS) | {"message", "asctime", "color_message"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_PATH_CHARS = 256

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class RequestDetails:
    """What the endpoint adds to its request's line; what stays None is left out."""

    model: str | None = None
    """A served name, never the client's spelling."""
    api_key: str | None = None
    """The name that the key file gives the caller's key."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    finish_reason: str | None = None
    trace_id: str | None = None
    """Of W3C Trace Context, 32 hexadecimal digits."""


def request_details(scope: Scope) -> RequestDetails:
    """The details of the request that `scope` belongs to, for the endpoint to fill in."""
    details: RequestDetails = scope.setdefault("quire.request_details", RequestDetails())
    return details


def log_request_end(scope: Scope, status: int, seconds: float) -> None:
    """Log the one line of a request whose reply ended after `seconds`."""
    path = scope["path"]
    fields: dict[str, object] = {
        "method": scope["method"],
        "path": path[:_MAX_PATH_CHARS],
        "status": status,
        "total_ms": round(seconds * 1000, 1),
    }
    for name, value in asdict(request_details(scope)).items():
        if value is not None:
            fields[name] = round(value, 1) if isinstance(value, float) else value
    level = logging.WARNING if status >= 500 else logging.INFO
    logger.log(logging.DEBUG if path in QUIET_PATHS else level, "request", extra=fields)


def configure_logging(log_format: Literal["console", "json"], log_level: str) -> None:
    """Send every logger's records to standard error as lines for eyes or for machines.

    Quire logs from `log_level` up, libraries from warning up. uvicorn's access log is off: a
    request's one line is ours.
    """
    level = log_level.upper()
    library_level = level if level == "ERROR" else "WARNING"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {
                "request_id": {"()": RequestIdFilter},
                "once_a_minute": {"()": OnceAMinuteFilter},
            },
            "formatters": {"console": {"()": ConsoleFormatter}, "json": {"()": json_formatter}},
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "filters": ["request_id"],
                    "formatter": log_format,
                },
                "traces": {
                    "class": "logging.StreamHandler",
                    "filters": ["once_a_minute"],
                    "formatter": log_format,
                },
            },
            "loggers": {
                "quire": {"level": level},
                "uvicorn": {"level": library_level, "handlers": [], "propagate": True},
                "uvicorn.error": {"level": library_level, "handlers": [], "propagate": True},
                # A collector that is gone would fill the log.
                "opentelemetry": {
                    "level": library_level,
                    "handlers": ["traces"],
                    "propagate": False,
                },
                "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            },
            "root": {"level": library_level, "handlers": ["stderr"]},
        }
    )
    logging.captureWarnings(True)


def set_log_level(log_level: str) -> None:
    """Quire's own lines from `log_level` up, from now on; those of libraries as before."""
    logging.getLogger("quire").setLevel(log_level.upper())


def json_formatter() -> JsonFormatter:
    """One ASCII JSON object per line: timestamp (UTC), level, logger, message, extra fields."""
    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
    )


class RequestIdFilter(logging.Filter):
    """Adds `request_id` to records logged on behalf of a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = REQUEST_ID.get()
        if request_id is not None and not hasattr(record, "request_id"):
            record.request_id = request_id
        return True


class OnceAMinuteFilter(logging.Filter):
    """Lets one record a minute pass."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._next = clock()

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + 60.0
        return True


class ConsoleFormatter(logging.Formatter):
    """`12:00:00.000 INFO quire.server.daemon: message key=value`; a traceback follows, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = (f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        return _escape(" ".join((super().formatMessage(record), *fields)))

    def formatException(self, ei: object) -> str:
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(f"    {_escape(line)}" for line in text.splitlines())


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)

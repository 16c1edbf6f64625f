"""Log lines: one per event whatever their values hold, with the request's id, for eyes and machines."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from quire.server.logs import (
    REQUEST_ID,
    ConsoleFormatter,
    OnceAMinuteFilter,
    RequestIdFilter,
    json_formatter,
    log_request_end,
    request_details,
)

FORGED = "x\r\n2026-01-01 ERROR forged\x1b[2J\u2028\x85end"


@pytest.fixture
def lines() -> Any:
    """Attaches a handler with a formatter to a logger of its own; returns logger and reader."""

    def attach(formatter: logging.Formatter) -> tuple[logging.Logger, Callable[[], str]]:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        handler.addFilter(RequestIdFilter())
        logger = logging.getLogger("quire.test")
        logger.handlers.clear()
        logger.addHandler(handler)
        return logger, stream.getvalue

    return attach


@pytest.mark.parametrize(
    "formatter", [ConsoleFormatter(), json_formatter()], ids=["console", "json"]
)
def test_no_value_can_forge_a_line(lines: Any, formatter: logging.Formatter) -> None:
    logger, read = lines(formatter)
    logger.warning("path=%s", FORGED, extra={"path": FORGED})
    assert read().endswith("\n")
    assert len(read().splitlines()) == 1
    assert "\x1b" not in read()


def test_a_traceback_on_the_console_is_indented(lines: Any) -> None:
    logger, read = lines(ConsoleFormatter())
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.exception("failed")
    first, *rest = read().rstrip("\n").split("\n")
    assert first.endswith("ERROR quire.test: failed")
    assert len(rest) > 2
    assert all(line.startswith("    ") for line in rest)


def test_json_lines_parse_and_carry_extra_fields_and_the_traceback(lines: Any) -> None:
    logger, read = lines(json_formatter())
    try:
        raise ValueError("inner")
    except ValueError:
        logger.exception("failed", extra={"epoch": 3})
    record = json.loads(read())
    assert record["level"] == "ERROR"
    assert record["logger"] == "quire.test"
    assert record["message"] == "failed"
    assert record["epoch"] == 3
    assert "ValueError: inner" in record["exc_info"]
    assert record["timestamp"].endswith("+00:00")
    assert "request_id" not in record


def test_lines_of_a_request_carry_its_id(lines: Any) -> None:
    for formatter, expected in (
        (ConsoleFormatter(), "request_id=r-1"),
        (json_formatter(), '"request_id": "r-1"'),
    ):
        logger, read = lines(formatter)
        token = REQUEST_ID.set("r-1")
        logger.warning("inside")
        REQUEST_ID.reset(token)
        logger.warning("outside")
        inside, outside = read().splitlines()
        assert expected in inside
        assert "request_id" not in outside


def _scope(path: str = "/v1/completions") -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path}


def test_a_request_s_line_has_what_the_endpoint_told(
    lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quire")
    scope = _scope()
    details = request_details(scope)
    details.model = "demo"
    details.prompt_tokens, details.cached_tokens, details.generated_tokens = 12, 0, 34
    details.queue_ms, details.ttft_ms, details.finish_reason = 1.26, 50.0, "stop"
    log_request_end(scope, 200, 1.23456)
    logger, read = lines(json_formatter())
    logger.handle(caplog.records[-1])
    record = json.loads(read())
    del record["timestamp"]
    assert record == {
        "level": "INFO",
        "logger": "quire.server.logs",
        "message": "request",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "total_ms": 1234.6,
        "model": "demo",
        "prompt_tokens": 12,
        "cached_tokens": 0,
        "generated_tokens": 34,
        "queue_ms": 1.3,
        "ttft_ms": 50.0,
        "finish_reason": "stop",
    }


@pytest.mark.parametrize(
    ("path", "status", "level"),
    [
        ("/v1/completions", 200, "INFO"),
        ("/v1/completions", 429, "INFO"),
        ("/v1/completions", 503, "WARNING"),
        ("/readyz", 503, "DEBUG"),
        ("/metrics", 200, "DEBUG"),
    ],
)
def test_the_level_of_a_request_s_line(
    caplog: pytest.LogCaptureFixture, path: str, status: int, level: str
) -> None:
    caplog.set_level(logging.DEBUG, "quire")
    log_request_end(_scope(path), status, 0.1)
    assert caplog.records[-1].levelname == level


def test_a_long_path_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quire")
    log_request_end(_scope("/" + "a" * 10_000), 404, 0.1)
    assert len(caplog.records[-1].path) == 256  # type: ignore[attr-defined]


SCRIPT = """
import logging, sys, warnings
from quire.server.logs import configure_logging
configure_logging(sys.argv[1], sys.argv[2])
configure_logging(sys.argv[1], sys.argv[2])
for name in ("quire.server.daemon", "uvicorn.error", "some.library"):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger(name).log(level, "%s %s", name, logging.getLevelName(level))
logging.getLogger("uvicorn.access").error("access")
warnings.warn("mind the gap", stacklevel=1)
print("stdout is the program's own")
"""


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", {"quire": 4, "uvicorn": 2, "some": 2}),
        ("info", {"quire": 3, "uvicorn": 2, "some": 2}),
        ("error", {"quire": 1, "uvicorn": 1, "some": 1}),
    ],
)
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_one_configuration_rules_every_logger(
    log_format: str, level: str, expected: dict[str, int]
) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, log_format, level],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "stdout is the program's own\n"
    messages = [
        json.loads(line)["message"] if log_format == "json" else line.split(": ", 1)[-1]
        for line in done.stderr.splitlines()
    ]
    for name, count in expected.items():
        assert sum(message.startswith(name) for message in messages) == count, name
    assert not any("access" in message for message in messages)
    assert any("mind the gap" in message for message in messages) == (level != "error")


def test_what_would_be_said_every_second_is_said_once_a_minute() -> None:
    now = 0.0
    once = OnceAMinuteFilter(lambda: now)
    record = logging.LogRecord("opentelemetry", logging.WARNING, "", 1, "gone", None, None)
    said = []
    for second in range(200):
        now = float(second)
        if once.filter(record):
            said.append(second)
    assert said == [0, 60, 120, 180]


def test_a_request_s_line_names_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    scope = {"type": "http", "method": "GET", "path": "/v1/models"}
    request_details(scope).trace_id = "ab" * 16
    with caplog.at_level(logging.INFO, logger="quire"):
        log_request_end(scope, 200, 0.1)
    (record,) = caplog.records
    assert record.__dict__["trace_id"] == "ab" * 16

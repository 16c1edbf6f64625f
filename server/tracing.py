"""Traces as the HTTP layer sees them. OpenTelemetry itself is in `otlp.py`, which only a daemon with
`otlp_traces_endpoint` imports: it is an extra, and it takes a moment to load.
"""

from typing import Protocol

from starlette.types import Scope

from quire.config.errors import ConfigError
from quire.config.settings import ServeSettings
from quire.server.engine import RequestTrace
from quire.server.metrics import Metrics


class HttpTrace(RequestTrace, Protocol):
    """The trace of one HTTP request."""

    trace_id: str
    """32 hexadecimal digits; the caller's, if it sent one."""

    def end(self, route: str | None, status: int) -> None:
        """The reply ended. `route` is its template; None for a path without one."""


class Tracing(Protocol):
    """Where spans go."""

    def begin(self, scope: Scope) -> HttpTrace:
        """A request arrived; its id and the time of its arrival are in `scope`."""

    def close(self) -> None:
        """Send what is left; blocks until it is sent or given up on."""


def load_tracing(settings: ServeSettings, metrics: Metrics) -> Tracing | None:
    """None where no endpoint is set.

    Raises:
        ConfigError: the packages are not installed, or an option makes no sense.
    """
    if settings.otlp_traces_endpoint is None:
        if settings.otlp_traces_sample_ratio != 1.0:
            raise ConfigError("otlp_traces_sample_ratio: needs an --otlp-traces-endpoint")
        return None
    try:
        from quire.server.otlp import OtlpTracing
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError(
            "otlp_traces_endpoint: OpenTelemetry is not installed; pip install 'quire[otel]'"
        ) from None
    try:
        return OtlpTracing(
            settings.otlp_traces_endpoint, settings.otlp_traces_sample_ratio, metrics.on_spans
        )
    except ValueError as error:
        raise ConfigError(f"OTEL_* variables: {error}") from None

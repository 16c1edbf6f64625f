"""The `http_*` families of the FastAPI instrumentator, with exact statuses and counted bytes."""

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LATENCY_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
HIGH_RESOLUTION_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0,
    7.5, 10.0, 30.0, 60.0,
)  # fmt: skip
"""The instrumentator's own."""


class HttpMetrics:
    """What passed through the HTTP listeners."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "HTTP requests; status 499: the client left or stopped reading.",
            ["handler", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "From the request's headers to the reply's last byte.",
            ["handler", "method"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._all_seconds = Histogram(
            "http_request_duration_highr_seconds",
            "As http_request_duration_seconds, of all handlers together in more buckets.",
            buckets=HIGH_RESOLUTION_BUCKETS,
            registry=registry,
        )
        self._received = Summary(
            "http_request_size_bytes",
            "Bytes of request bodies, as far as they were read.",
            ["handler"],
            registry=registry,
        )
        self._sent = Summary(
            "http_response_size_bytes",
            "Bytes of reply bodies, those of streams included.",
            ["handler"],
            registry=registry,
        )

    def on_request(
        self, handler: str, method: str, status: int, seconds: float, *, received: int, sent: int
    ) -> None:
        """A reply ended. `handler` is a route's template, or "other" for a path without one;
        `received` and `sent` are bytes of the bodies."""
        method = method if method in HTTP_METHODS else "other"
        self._requests.labels(handler, method, str(status)).inc()
        self._seconds.labels(handler, method).observe(seconds)
        self._all_seconds.observe(seconds)
        self._received.labels(handler).observe(received)
        self._sent.labels(handler).observe(sent)

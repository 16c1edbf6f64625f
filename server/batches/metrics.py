"""The numbers of batches that Prometheus scrapes."""

from typing import get_args

from quire.server.batches.schema import UNFINISHED, Status
from quire.server.metric_families import Families


class BatchMetrics:
    """Methods are named after what happened."""

    def __init__(self, make: Families) -> None:
        self._unfinished = 0
        self._requests = make.gauges(
            "quire_batch_requests",
            "Requests of unfinished batches that were found good, by state.",
            "state",
            ("waiting", "running"),
        )
        self._ended_requests = make.counters(
            "quire_batch_requests_ended",
            "Requests of batches that were answered, by outcome.",
            "outcome",
            ("completed", "failed"),
        )
        self._retries = make.counter(
            "quire_batch_request_retries", "Requests of batches that were sent once more."
        )
        self._ended = make.counters(
            "quire_batches_ended",
            "Batches that ended, by status.",
            "status",
            [status for status in get_args(Status) if status not in UNFINISHED],
        )
        self._stored = make.gauge("quire_state_bytes", "What files and batches count on the disk.")

    def set_load(self, *, unfinished: int, running: int, stored: int) -> None:
        """Requests without a result, those of them that run, and bytes of the state folder."""
        self._requests["waiting"].set(max(0, unfinished - running))
        self._requests["running"].set(running)
        self._stored.set(stored)

    def on_line_end(self, *, is_error: bool) -> None:
        self._ended_requests["failed" if is_error else "completed"].inc()

    def on_retry(self) -> None:
        self._retries.inc()

    def on_batch_end(self, status: Status) -> None:
        self._ended[status].inc()

"""`Lifecycle`: where the engine's life stands. The supervisor tells it; probes and metrics read it."""

import time

READY = "ready"
DRAINING = "draining"
RESTARTING = "restarting"


class Lifecycle:
    """The engine's phase and what there is to say about it.

    `phase` is "starting", then the worker's own words ("loading weights"), then "ready"; after a
    worker's death "restarting" and the words of its successor; "draining" is final. `fraction` is
    the done part of `phase`, 0..1. `reason` says why a once ready engine is not; the probes show
    it to anyone, so it holds no path, name or request text.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.phase = "starting"
        self.fraction = 0.0
        self.reason: str | None = None
        self.since = self._started
        """Monotonic seconds at which `phase` began."""
        self.startup_seconds: float | None = None
        """Seconds from construction to the first ready; None before that."""

    @property
    def is_ready(self) -> bool:
        return self.phase == READY

    @property
    def has_started(self) -> bool:
        """Whether it was ever ready."""
        return self.startup_seconds is not None

    def on_progress(self, phase: str, fraction: float) -> None:
        """A starting worker (or the search for its model) is `fraction` through `phase`."""
        self._enter(phase, fraction)

    def on_ready(self) -> None:
        if self._enter(READY, 1.0):
            self.reason = None
        if self.startup_seconds is None:
            self.startup_seconds = time.monotonic() - self._started

    def on_worker_lost(self, reason: str) -> None:
        """The worker died; another is started."""
        if self._enter(RESTARTING, 0.0):
            self.reason = reason

    def on_draining(self) -> None:
        """No request is admitted any more; nothing leaves this phase."""
        self._enter(DRAINING, 0.0)
        self.reason = "the server is shutting down"

    def _enter(self, phase: str, fraction: float) -> bool:
        if self.phase == DRAINING:
            return False
        if phase != self.phase:
            self.phase = phase
            self.since = time.monotonic()
        self.fraction = min(1.0, max(0.0, fraction))
        return True

"""`Timelines`: when what happened to a request, for a person who asks why it was slow.

Holds numbers and names only, no text and no token. Requests under way are shown as they are; of
ended ones the latest are kept.
"""

import time
from collections import deque
from collections.abc import Sequence

from typing_extensions import TypedDict

from quire.server.engine import ChoiceTimeline, Origin
from quire.server.errors import ApiError
from quire.server.live_stream import LiveStream

MAX_KEPT_CHOICES = 1024
"""Of ended requests; the oldest of them are forgotten."""


class RequestTimeline(TypedDict):
    """One HTTP request that was admitted."""

    id: str
    """Its x-request-id."""
    api_key: str | None
    """The name of its key, where the key file gives one."""
    arrival: float
    """Seconds since 1970, UTC."""
    timeout: float | None
    choices: list[ChoiceTimeline]


class _Entry:
    def __init__(self, origin: Origin, streams: Sequence[LiveStream], epoch: int) -> None:
        self.origin = origin
        self.epoch = epoch
        # An ended stream is replaced by its line, so that its tokens are not kept.
        self.choices: list[LiveStream | ChoiceTimeline] = list(streams)


class Timelines:
    """Those of `EngineClient`, which tells what happens."""

    def __init__(self) -> None:
        # Added to a monotonic time it gives the time of day.
        self._offset = time.time() - time.monotonic()
        self._live: dict[int, _Entry] = {}
        self._ended: deque[_Entry] = deque()
        self._ended_choices = 0

    def open(self, origin: Origin, streams: Sequence[LiveStream], epoch: int) -> None:
        """A request was admitted."""
        if origin.trace is not None:
            origin.trace.on_admission([stream.context for stream in streams])
        entry = _Entry(origin, streams, epoch)
        for stream in streams:
            self._live[stream.context.request_id] = entry

    def on_epoch(self, epoch: int) -> None:
        """A new worker takes over whatever is live."""
        for entry in self._live.values():
            entry.epoch = epoch

    def on_end(
        self, stream: LiveStream, ended_at: float, reason: str, error: ApiError | None
    ) -> None:
        entry = self._live.pop(stream.context.request_id, None)
        if entry is None:
            return
        index = entry.choices.index(stream)
        line = _line(index, stream, entry)
        line["state"] = reason
        line["error"] = error.code if error is not None and not stream.was_closed else None
        line["ended_after"] = _after(ended_at, entry.origin)
        entry.choices[index] = line
        if entry.origin.trace is not None:
            entry.origin.trace.on_choice_end(stream.context, line)
        if not any(isinstance(choice, LiveStream) for choice in entry.choices):
            self._keep(entry)

    def list(self) -> list[RequestTimeline]:
        """All that are known: those under way, oldest first, then ended ones, latest first."""
        live = dict.fromkeys(self._live.values())
        return [self._shown(entry) for entry in (*live, *reversed(self._ended))]

    def find(self, request_id: str) -> RequestTimeline | None:
        """The latest request with that x-request-id."""
        for entry in (*reversed(dict.fromkeys(self._live.values())), *reversed(self._ended)):
            if entry.origin.request_id == request_id:
                return self._shown(entry)
        return None

    def _keep(self, entry: _Entry) -> None:
        self._ended.append(entry)
        self._ended_choices += len(entry.choices)
        while self._ended_choices > MAX_KEPT_CHOICES:
            self._ended_choices -= len(self._ended.popleft().choices)

    def _shown(self, entry: _Entry) -> RequestTimeline:
        origin = entry.origin
        return {
            "id": origin.request_id,
            "api_key": origin.caller.name if origin.caller is not None else None,
            "arrival": round(origin.arrival + self._offset, 3),
            "timeout": origin.timeout,
            "choices": [
                _line(index, choice, entry) if isinstance(choice, LiveStream) else choice
                for index, choice in enumerate(entry.choices)
            ],
        }


def _line(index: int, stream: LiveStream, entry: _Entry) -> ChoiceTimeline:
    times, tokens, origin = stream.times, stream.context.tokens, entry.origin
    scheduled = None if times.queue_seconds is None else times.arrival + times.queue_seconds
    return {
        "index": index,
        "state": "queued" if times.first_token is None else "running",
        "error": None,
        "prompt_tokens": tokens.prompt_length,
        "cached_tokens": stream.cached_tokens,
        "generated_tokens": tokens.generated_length,
        "max_tokens": stream.context.params.max_new_tokens,
        "submitted_after": round(times.arrival - origin.arrival, 6),
        "scheduled_after": _after(scheduled, origin),
        "first_token_after": _after(times.first_token, origin),
        "last_token_after": _after(times.last_token, origin),
        "ended_after": None,
        "preemptions": stream.preemptions,
        "resumes": stream.resumes,
        "worker_epoch": entry.epoch,
    }


def _after(moment: float | None, origin: Origin) -> float | None:
    return None if moment is None else round(moment - origin.arrival, 6)

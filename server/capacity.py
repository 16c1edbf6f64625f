"""`Capacity`: how many contexts may be live, in all and per caller, and when there is room again.

The wait that a refusal tells is measured: the rate at which contexts ended lately. Refused callers
are told one after the other's time, so that they do not come back all at once.
"""

import time
from collections import Counter, deque
from collections.abc import Callable

from quire.server.engine import Caller
from quire.server.errors import InvalidRequest, KeyOverloaded, Overloaded
from quire.server.metrics import Metrics

_ENDS = 64
_UNKNOWN_SECONDS = 1.0
_LEAST_SECONDS, _MOST_SECONDS = 0.1, 60.0


class _Turns:
    """When refused callers may come back: a turn for each, as fast as contexts end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ended_at: deque[float] = deque(maxlen=_ENDS)
        self._last_turn = 0.0

    def on_end(self) -> None:
        self._ended_at.append(self._clock())

    def forget(self) -> None:
        """Nothing is live: what comes next is not as fast as what was."""
        self._ended_at.clear()
        self._last_turn = 0.0

    def next(self, count: int) -> float:
        """Seconds until `count` contexts more than those already told may have room, 0.1 to 60."""
        now = self._clock()
        if len(self._ended_at) < 2:
            return _UNKNOWN_SECONDS
        seconds = count * max(1e-3, now - self._ended_at[0]) / (len(self._ended_at) - 1)
        self._last_turn = min(max(now, self._last_turn) + seconds, now + _MOST_SECONDS)
        return max(_LEAST_SECONDS, self._last_turn - now)


class Capacity:
    """`total` contexts may be live at once, `per_caller` of each caller if that is set."""

    def __init__(
        self,
        total: int,
        per_caller: int | None,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.num_running = 0
        """Of the live ones, as the worker said last; the others wait."""
        self._per_caller = per_caller
        self._metrics = metrics
        self._clock = clock
        self._num_live = 0
        self._live: Counter[str] = Counter()
        self._turns = _Turns(clock)
        self._turns_of: dict[str, _Turns] = {}

    def check(self, count: int, caller: Caller | None) -> None:
        """Raises what `server.engine.Engine.submit` does unless `count` more contexts have room."""
        if self._per_caller is not None and caller is not None:
            self._check_caller(count, caller.identity, self._per_caller)
        if count > self.total:
            raise _never(count, self.total, "this server admits", "max_batch_size + max_queue_size")
        if self._num_live + count <= self.total:
            return
        self._metrics.on_rejection("max_num_queued_reqs")
        position = max(0, self._num_live - self.num_running) + 1
        seconds = self._turns.next(count)
        raise Overloaded(
            f"The queue is full: {self._num_live} requests are running or waiting, the limit is "
            f"{self.total}, this request needs {count}. It would be number {position} in the "
            f"queue; room is expected in {seconds:.1f} s",
            seconds,
            queue_position=position,
        )

    def has_room(self, count: int, caller: Caller | None) -> bool:
        """Whether `check` would let `count` more contexts pass."""
        own = 0 if caller is None else self._live[caller.identity]
        limit = None if caller is None else self._per_caller
        return self._num_live + count <= self.total and (limit is None or own + count <= limit)

    def add(self, count: int, caller: Caller | None) -> None:
        self._num_live += count
        if caller is not None:
            self._live[caller.identity] += count
            self._turns_of.setdefault(caller.identity, _Turns(self._clock))

    def remove(self, caller: Caller | None) -> None:
        """One context ended."""
        self._num_live -= 1
        self._turns.on_end()
        if not self._num_live:
            self._turns.forget()
        if caller is None:
            return
        self._live[caller.identity] -= 1
        self._turns_of[caller.identity].on_end()
        if not self._live[caller.identity]:
            del self._live[caller.identity], self._turns_of[caller.identity]

    def _check_caller(self, count: int, identity: str, limit: int) -> None:
        if count > limit:
            raise _never(count, limit, "an API key may have", "max_concurrency_per_key")
        live = self._live[identity]
        if live + count <= limit:
            return
        self._metrics.on_rejection("max_concurrency_per_key")
        seconds = self._turns_of[identity].next(count)
        raise KeyOverloaded(
            f"This API key has {live} requests running or waiting, the limit is {limit}, this "
            f"request needs {count}; room is expected in {seconds:.1f} s",
            seconds,
        )


def _never(count: int, limit: int, who: str, option: str) -> InvalidRequest:
    return InvalidRequest(
        f"'n' times the number of prompts is {count}; {who} at most {limit} at once ({option})",
        param="n",
        code="invalid_value",
    )

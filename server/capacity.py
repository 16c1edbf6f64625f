"""`Capacity`: how many contexts may be live, in all and per caller, and when there is room again.

The wait that a refusal tells is measured: the rate at which contexts ended lately. Refused callers
are told one after the other's time, so that they do not come back all at once.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable

from quire.server.engine import Caller
from quire.server.errors import InvalidRequest, KeyOverloaded, Overloaded
from quire.server.metrics import Metrics

_ENDS = 64
_UNKNOWN_SECONDS = 1.0
_LEAST_SECONDS, _MOST_SECONDS = 0.1, 60.0

QUIET_SECONDS = 2.0
"""Without a live request, until background callers get all of their places."""
YIELDED = 6
"""Part of their places that background callers have before that: what is in a step makes it slower
for all."""


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
    """`total` contexts may be live at once, `per_caller` of each caller if that is set.

    Those of background callers are let in while at most `background` are live, whoever's they are,
    and fewer of them as long as there are live requests; a request that needs more waits until
    nothing else is. They count toward no other's limit.
    """

    def __init__(
        self,
        total: int,
        per_caller: int | None,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        background: int | None = None,
    ) -> None:
        self.total = total
        self._background = total if background is None else background
        self.num_running = 0
        """Of the live ones, as the worker said last; the others wait."""
        self._per_caller = per_caller
        self._metrics = metrics
        self._clock = clock
        self._num_live = 0
        self._num_background = 0
        self._live_until = -math.inf
        self._live: Counter[Caller] = Counter()
        self._turns = _Turns(clock)
        self._turns_of: dict[Caller, _Turns] = {}

    def check(self, count: int, caller: Caller | None) -> None:
        """Raises what `server.engine.Engine.submit` does unless `count` more contexts have room."""
        if self._per_caller is not None and caller is not None:
            self._check_caller(count, caller, self._per_caller)
        if count > self.total:
            raise _never(count, self.total, "this server admits", "max_batch_size + max_queue_size")
        if self.has_room(count, caller):
            return
        if caller is not None and caller.is_background:
            raise Overloaded("Live requests leave no room for a batch's", _UNKNOWN_SECONDS)
        self._metrics.on_rejection("max_num_queued_reqs")
        live = self._num_live - self._num_background
        position = max(0, self._num_live - self.num_running) + 1
        seconds = self._turns.next(count)
        raise Overloaded(
            f"The queue is full: {live} requests are running or waiting, the limit is "
            f"{self.total}, this request needs {count}. It would be number {position} in the "
            f"queue; room is expected in {seconds:.1f} s",
            seconds,
            queue_position=position,
        )

    def has_room(self, count: int, caller: Caller | None) -> bool:
        """Whether `check` would let `count` more contexts pass."""
        limit = None if caller is None else self._per_caller
        if caller is not None and limit is not None and self._live[caller] + count > limit:
            return False
        if caller is not None and caller.is_background:
            own = max(count, self._background // YIELDED) if self._is_busy else self._background
            has_place = self._num_live + count <= max(count, self._background)
            return has_place and self._num_background + count <= max(count, own)
        return self._num_live - self._num_background + count <= self.total

    @property
    def _is_busy(self) -> bool:
        """Whether live requests are here, or may soon be again."""
        has_live = self._num_live > self._num_background
        return has_live or self._clock() - self._live_until < QUIET_SECONDS

    def add(self, count: int, caller: Caller | None) -> None:
        self._num_live += count
        if caller is not None:
            self._live[caller] += count
            self._num_background += count * caller.is_background
            self._turns_of.setdefault(caller, _Turns(self._clock))

    def remove(self, caller: Caller | None) -> None:
        """One context ended."""
        self._num_live -= 1
        self._turns.on_end()
        if caller is None or not caller.is_background:
            self._live_until = self._clock()
        if not self._num_live:
            self._turns.forget()
        if caller is None:
            return
        self._live[caller] -= 1
        self._num_background -= caller.is_background
        self._turns_of[caller].on_end()
        if not self._live[caller]:
            del self._live[caller], self._turns_of[caller]

    def _check_caller(self, count: int, caller: Caller, limit: int) -> None:
        if count > limit:
            raise _never(count, limit, "an API key may have", "max_concurrency_per_key")
        live = self._live[caller]
        if live + count <= limit:
            return
        if not caller.is_background:
            self._metrics.on_rejection("max_concurrency_per_key")
        seconds = self._turns_of[caller].next(count)
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

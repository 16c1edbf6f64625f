"""Contexts as the scheduler sees them, and the order in which they wait."""

import heapq

from quire.pipelines.core.context import TextContext
from quire.pipelines.kv_cache.manager import HeldPages

AGING_SECONDS_PER_LEVEL = 5.0
"""How much longer a context waits, relative to others, per level of `priority`."""


class ScheduledContext:
    """A live context with its place in line and its pages.

    `order` is fixed at submission and kept through preemption: time of receipt, put off by
    `AGING_SECONDS_PER_LEVEL` per level of priority, then order of arrival. Whatever arrives long
    enough after a context comes behind it, so nobody starves.
    """

    __slots__ = ("context", "held", "order", "queue_seconds", "received")

    def __init__(
        self, context: TextContext, received: float, arrival: int, held: HeldPages
    ) -> None:
        self.context = context
        self.received = received
        self.order = (received + context.priority * AGING_SECONDS_PER_LEVEL, arrival)
        self.held = held
        """Its capacity is 0 exactly while the context waits."""
        self.queue_seconds = 0.0
        """Time from receipt to first schedule."""


class WaitingQueue:
    """A heap by `order`; an entry is removed in O(1) amortized by leaving it in the heap, dead."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, int], ScheduledContext]] = []
        self._members: dict[int, ScheduledContext] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._members

    def push(self, entry: ScheduledContext) -> None:
        self._members[entry.context.request_id] = entry
        heapq.heappush(self._heap, (entry.order, entry))

    def first(self) -> ScheduledContext:
        """The entry whose turn it is; the queue must not be empty."""
        while not self._is_member(self._heap[0][1]):
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def pop_first(self) -> ScheduledContext:
        entry = self.first()
        heapq.heappop(self._heap)
        del self._members[entry.context.request_id]
        return entry

    def remove(self, request_id: int) -> None:
        """Drop a context for good; it is never pushed again."""
        del self._members[request_id]
        if len(self._heap) > 2 * len(self._members) + 16:
            self._heap = [item for item in self._heap if self._is_member(item[1])]
            heapq.heapify(self._heap)

    def _is_member(self, entry: ScheduledContext) -> bool:
        return self._members.get(entry.context.request_id) is entry

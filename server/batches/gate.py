"""When a line of a batch may run: while live requests leave room."""

import asyncio
from collections import OrderedDict, deque

from starlette.datastructures import State

from quire.server.engine import Caller, Engine
from quire.server.errors import EngineUnavailable

POLL_SECONDS = 0.02
UNAVAILABLE_SECONDS = 0.25


class Gate:
    """Lets at most `width` lines in at once, and only into places that are free.

    Owners take turns, and so do the batches of one.
    """

    def __init__(self, state: State, width: int) -> None:
        self._state = state
        self._width = width
        self._waiting: OrderedDict[Caller, deque[asyncio.Future[None]]] = OrderedDict()
        """The owner whose turn it is comes first."""
        self._task: asyncio.Task[None] | None = None
        self.num_inside = 0

    async def enter(self, owner: Caller) -> None:
        """Wait for a place; whoever got one calls `leave`."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(place)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._let_in())
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        self.num_inside -= 1

    async def _let_in(self) -> None:
        while self._waiting:
            await asyncio.sleep(min([self._take_turn(owner) for owner in [*self._waiting]]))

    def _take_turn(self, owner: Caller) -> float:
        """Let one line of an owner in, if it may; seconds until it is worth to look again."""
        lines = self._waiting[owner]
        while lines and lines[0].done():  # It gave up waiting.
            lines.popleft()
        seconds = self._seconds_to_wait(owner) if lines else 0.0
        if lines and not seconds:
            lines.popleft().set_result(None)
            self.num_inside += 1
            self._waiting.move_to_end(owner)
        if not lines:
            del self._waiting[owner]
        return seconds

    def _seconds_to_wait(self, owner: Caller) -> float:
        if self.num_inside >= self._width:
            return POLL_SECONDS
        engine: Engine = self._state.engine
        try:
            return 0.0 if engine.has_room(1, owner) else POLL_SECONDS
        except EngineUnavailable:
            return UNAVAILABLE_SECONDS

"""`ResponseStore`: the responses that clients may come back to, in memory, within bounds."""

from collections import OrderedDict
from dataclasses import dataclass, replace

from quire.server.engine import Caller

ENTRY_BYTES = 1024
"""What Python needs for one entry besides its text; generously."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """`input`: the request's own items, a JSON list; what came before is in the response that it
    goes on from. `body`: the response as it was sent."""

    id: str
    previous_id: str | None
    input: bytes
    body: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.input) + len(self.body) + ENTRY_BYTES


class ResponseStore:
    """At most `max_bytes` and `max_count` of all callers; what was read longest ago goes first.

    A caller finds its own responses alone. With `max_bytes` 0 nothing is kept.
    """

    def __init__(self, max_bytes: int, max_count: int) -> None:
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._entries: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_on(self) -> bool:
        return self._max_bytes > 0

    def put(self, caller: Caller | None, response: StoredResponse) -> None:
        """Keep a response, whose id is new, unless it is larger than all of the store."""
        if response.num_bytes > self._max_bytes:
            return
        kept = replace(response, input=_own(response.input), body=_own(response.body))
        self._entries[_key(caller, response.id)] = kept
        self.num_bytes += response.num_bytes
        while self.num_bytes > self._max_bytes or len(self) > self._max_count:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    def find(self, caller: Caller | None, response_id: str) -> StoredResponse | None:
        """A response of this caller, which is from now on the one that was read last."""
        key = _key(caller, response_id)
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def chain(self, caller: Caller | None, response_id: str) -> list[StoredResponse]:
        """A response after all those that it goes on from.

        Raises:
            KeyError: with the id of the one that is not there.
        """
        chain: list[StoredResponse] = []
        next_id: str | None = response_id
        while next_id is not None:
            found = self.find(caller, next_id)
            if found is None:
                raise KeyError(next_id)
            chain.append(found)
            next_id = found.previous_id
        return chain[::-1]

    def delete(self, caller: Caller | None, response_id: str) -> bool:
        """Forget a response; False if there was none."""
        found = self._entries.pop(_key(caller, response_id), None)
        if found is None:
            return False
        self.num_bytes -= found.num_bytes
        return True


def _own(data: bytes) -> bytes:
    """A copy: what orjson returns holds on to as much as it had to reserve, 4 KiB at least."""
    return bytes(memoryview(data))


def _key(caller: Caller | None, response_id: str) -> tuple[str, str]:
    # A batch without keys has a nameless caller.
    return ("" if caller is None else caller.identity), response_id

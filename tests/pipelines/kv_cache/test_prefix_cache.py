from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.pipelines.kv_cache.page_pool import PagePool
from quire.pipelines.kv_cache.prefix_cache import PageChain, PrefixCache

PAGE_SIZE = 2
HISTORIES = st.lists(st.integers(0, 1), min_size=1, max_size=11)
SALTS = st.sampled_from([b"", b"tenant"])


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def cached(histories: list[list[int]], *, salt: bytes = b"", enabled: bool = True) -> PrefixCache:
    """A cache in which these histories were run one after the other."""
    pool = PagePool(32)
    cache = PrefixCache(pool, PAGE_SIZE, enabled=enabled)
    for history in histories:
        pages = pool.allocate(-(-len(history) // PAGE_SIZE))
        cache.commit(cache.new_chain(salt), array(history), pages, 0)
        pool.release(pages)
    return cache


@pytest.mark.parametrize(
    ("history", "hits"),
    [
        ([1, 2, 3, 4, 5], 2),
        ([1, 2, 3, 4], 1),
        ([1, 2, 3], 1),
        ([1, 2], 0),
        ([1, 2, 9, 4, 5], 1),
        ([9, 2, 3, 4, 5], 0),
        ([3, 4, 5], 0),
    ],
)
def test_the_longest_run_of_full_pages_hits_but_never_the_last_token(
    history: list[int], hits: int
) -> None:
    cache = cached([[1, 2, 3, 4, 5, 6]])
    assert len(cache.match(cache.new_chain(b""), array(history))) == hits


def test_a_partial_page_is_not_cached() -> None:
    cache = cached([[1, 2, 3]])
    assert len(cache.match(cache.new_chain(b""), array([1, 2, 3, 4, 5]))) == 1


def test_salts_do_not_meet() -> None:
    cache = cached([[1, 2, 3, 4]], salt=b"a")
    assert cache.match(cache.new_chain(b"b"), array([1, 2, 3, 4])) == []
    assert cache.match(cache.new_chain(b"a"), array([1, 2, 3, 4])) != []


def test_a_disabled_cache_finds_and_records_nothing() -> None:
    cache = cached([[1, 2, 3, 4]], enabled=False)
    assert cache.match(cache.new_chain(b""), array([1, 2, 3, 4])) == []


def test_a_reset_forgets_every_page() -> None:
    cache = cached([[1, 2, 3, 4], [5, 6, 7]])
    cache.reset()
    assert cache.match(cache.new_chain(b""), array([1, 2, 3, 4])) == []


def test_the_same_pages_computed_twice_are_kept_once() -> None:
    pool = PagePool(4)
    cache = PrefixCache(pool, PAGE_SIZE)
    first, second = pool.allocate(2), pool.allocate(2)
    for pages in (first, second):
        assert cache.commit(cache.new_chain(b""), array([1, 2, 3, 4]), pages, 0) == 2
    assert first == second
    assert pool.num_free == 2


def test_a_page_is_hashed_once_per_history() -> None:
    cache = cached([])
    chain = cache.new_chain(b"")
    cache.match(chain, array([1, 2, 3]))
    before = list(chain)
    cache.match(chain, array([1, 2, 3]))
    assert chain == before
    assert len(chain) == 2


@dataclass
class Holder:
    history: list[int]
    salt: bytes
    chain: PageChain
    pages: list[int] = field(default_factory=list)
    written: int = 0
    committed: int = 0


class CacheMachine(RuleBasedStateMachine):
    """Pool and cache under all that contexts do to them, against a model of what memory holds.

    `memory` maps (page, offset) to the salt and history whose KV was written there.
    """

    @initialize(num_pages=st.integers(1, 12))
    def start(self, num_pages: int) -> None:
        self.pool = PagePool(num_pages)
        self.cache = PrefixCache(self.pool, PAGE_SIZE)
        self.memory: dict[tuple[int, int], tuple[bytes, tuple[int, ...]]] = {}
        self.holders: list[Holder] = []
        self.waiting: list[Holder] = []

    def admit(self, holder: Holder) -> bool:
        hits = self.cache.match(holder.chain, array(holder.history))
        wanted = -(-len(holder.history) // PAGE_SIZE) - len(hits)
        if wanted > self.pool.num_free - sum(self.pool.is_free(page) for page in hits):
            return False
        self.pool.retain(hits)
        holder.pages = hits + self.pool.allocate(wanted)
        holder.written, holder.committed = len(hits) * PAGE_SIZE, len(hits)
        assert holder.written < len(holder.history)
        self.holders.append(holder)
        return True

    @rule(history=HISTORIES, salt=SALTS)
    def allocate(self, history: list[int], salt: bytes) -> None:
        self.admit(Holder(history, salt, self.cache.new_chain(salt)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), tail=HISTORIES)
    def share(self, data: st.DataObject, tail: list[int]) -> None:
        other = data.draw(st.sampled_from(self.holders))
        history = other.history + tail
        self.admit(Holder(history, other.salt, self.cache.new_chain(other.salt)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """A step: some of the history's KV is written and full pages are committed."""
        holder = data.draw(st.sampled_from(self.holders))
        end = data.draw(st.integers(holder.written, len(holder.history)))
        for position in range(holder.written, end):
            page = holder.pages[position // PAGE_SIZE]
            assert sum(other.pages.count(page) for other in self.holders) == 1
            entry = (holder.salt, tuple(holder.history[: position + 1]))
            self.memory[page, position % PAGE_SIZE] = entry
        holder.written = end
        history = array(holder.history[:end])
        holder.committed = self.cache.commit(holder.chain, history, holder.pages, holder.committed)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), token=st.integers(0, 1))
    def append(self, data: st.DataObject, token: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        if len(holder.history) == len(holder.pages) * PAGE_SIZE:
            if self.pool.num_free == 0:
                return
            holder.pages += self.pool.allocate(1)
        holder.history = [*holder.history, token]

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), preempt=st.booleans())
    def release(self, data: st.DataObject, preempt: bool) -> None:
        """The context ends or is cancelled, or is preempted to come back later."""
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.pool.release(holder.pages)
        holder.pages = []
        if preempt:
            self.waiting.append(holder)

    @precondition(lambda self: self.waiting)
    @rule()
    def resume(self) -> None:
        if self.admit(self.waiting[0]):
            self.waiting.pop(0)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.pool.forget(holder.pages)
        self.pool.release(holder.pages)

    @rule()
    def evict(self) -> None:
        self.pool.release(self.pool.allocate(self.pool.num_free))
        assert self.pool.num_cached == 0

    @rule()
    def reset(self) -> None:
        self.cache.reset()

    @invariant()
    def counts_agree_with_the_tables(self) -> None:
        self.pool.check_integrity(holder.pages for holder in self.holders)
        assert self.pool.num_used + self.pool.num_free == self.pool.num_pages

    @invariant()
    def each_holder_reads_its_own_history(self) -> None:
        for holder in self.holders:
            for position in range(holder.written):
                place = (holder.pages[position // PAGE_SIZE], position % PAGE_SIZE)
                expected = (holder.salt, tuple(holder.history[: position + 1]))
                assert self.memory[place] == expected

    def teardown(self) -> None:
        for holder in self.holders:
            self.pool.release(holder.pages)
        assert self.pool.num_free == self.pool.num_pages


CacheMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestPoolAndCache = CacheMachine.TestCase

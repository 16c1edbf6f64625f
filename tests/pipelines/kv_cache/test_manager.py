"""Page groups together: a model of what memory holds, and the promise that one context always fits."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.pipelines.kv_cache.manager import HeldPages, PagedKVCacheManager
from quire.pipelines.kv_cache.page_group import PageGroup, most_pages

PAGE_SIZE = 2
CHUNK = 5
HISTORIES = st.lists(st.integers(0, 1), min_size=1, max_size=14)
SALTS = st.sampled_from([b"", b"tenant"])
WINDOWS = st.sampled_from([(None,), (None, 3), (4,), (None, 1, 6)])


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def manager(*groups: PageGroup, enabled: bool = True) -> PagedKVCacheManager:
    return PagedKVCacheManager(
        groups, page_size=PAGE_SIZE, max_chunk=CHUNK, enable_prefix_caching=enabled
    )


def run(kv: PagedKVCacheManager, history: list[int]) -> HeldPages:
    """A context that has run its whole history, in chunks of two pages."""
    held = kv.new_context(b"")
    hits = kv.match(held, array(history))
    assert kv.start(held, hits, len(history), 0)
    for end in [*range(len(hits[0]) * PAGE_SIZE + 4, len(history), 4), len(history)]:
        assert kv.extend(held, end - 4, len(history))
        kv.advance(held, array(history[:end]))
    return held


def num_hits(kv: PagedKVCacheManager, history: list[int]) -> int:
    return len(kv.match(kv.new_context(b""), array(history))[0])


def test_pages_behind_the_window_are_released_and_others_kept() -> None:
    kv = manager(PageGroup(8), PageGroup(8, window=3))
    held = run(kv, list(range(9)))
    assert held.dropped == [0, 3]
    assert held.tables[1][:3] == [0, 0, 0]
    assert kv.num_used == 5 + 2
    kv.check_integrity([(held, 9)])


def test_a_prefix_needs_the_pages_of_its_last_window_only() -> None:
    kv = manager(PageGroup(16), PageGroup(6, window=3))
    history = list(range(12))
    kv.release(run(kv, history))
    assert num_hits(kv, [*history, 99]) == 6
    # The pages that the window passed first are the first to be taken by others.
    kv.release(run(kv, [50, 51, 52, 53]))
    assert num_hits(kv, [*history, 99]) == 6
    assert num_hits(kv, history[:3]) == 0


def test_a_prefix_without_its_last_window_is_found_as_far_as_there_is_one() -> None:
    kv = manager(PageGroup(16), PageGroup(8, window=3))
    history = list(range(8))
    kv.release(run(kv, history))
    held = kv.new_context(b"")
    tables = kv.match(held, array([*history, 99]))
    assert len(tables[1]) == 4
    kv._groups[1].pool.forget([tables[1][3]])
    tables = kv.match(held, array([*history, 99]))
    assert [len(table) for table in tables] == [3, 3]
    assert tables[1][:2] == [0, tables[1][1]]


def test_a_group_without_a_page_for_the_prefix_leaves_none() -> None:
    kv = manager(PageGroup(16), PageGroup(8, window=3))
    history = list(range(8))
    kv.release(run(kv, history))
    kv._groups[1].pool.forget_all()
    assert num_hits(kv, [*history, 99]) == 0


def test_every_group_must_have_room() -> None:
    kv = manager(PageGroup(16), PageGroup(4, window=3))
    held, other = kv.new_context(b""), kv.new_context(b"")
    assert not kv.start(held, kv.no_match(), 12, num_spare=1)
    assert kv.num_used == 0
    assert kv.start(held, kv.no_match(), 12, num_spare=0)
    assert held.capacity == 8
    assert not kv.start(other, kv.no_match(), 2, num_spare=0)
    assert kv.usage == 1.0
    assert not kv.extend(held, 4, 12)
    assert [len(table) for table in held.tables] == [6, 4]


def test_a_failed_context_leaves_nothing_behind_its_window() -> None:
    kv = manager(PageGroup(8), PageGroup(8, window=3))
    history = list(range(9))
    held = run(kv, history)
    live = [held.tables[0], held.tables[1][3:]]
    behind = kv._groups[1].cache.recorded(held.chain[1:4])
    assert len(behind) == 3
    kv.fail(held)
    full, windowed = kv.take_pages_to_scrub()
    assert sorted(full) == sorted(live[0])
    assert sorted(windowed) == sorted(live[1] + behind)
    assert kv.take_pages_to_scrub() == []
    assert kv.num_cached == 0


def test_a_context_that_never_fits_is_named_by_its_pages() -> None:
    kv = manager(PageGroup(100), PageGroup(4, window=4))
    kv.check_fits(8)
    with pytest.raises(ValueError, match="needs 5 pages of KV memory; there are 4"):
        kv.check_fits(150)


@pytest.mark.parametrize("damage", ["dropped", "table", "capacity"])
def test_damage_is_found_out(damage: str) -> None:
    kv = manager(PageGroup(8), PageGroup(8, window=3))
    held = run(kv, list(range(9)))
    if damage == "dropped":
        kv._groups[1].pool.release(held.tables[1][3:4])
        held.tables[1][3], held.dropped[1] = 0, 4
    elif damage == "table":
        held.tables[1][0] = 5
    else:
        held.capacity += PAGE_SIZE
    with pytest.raises(RuntimeError, match="too early|too few"):
        kv.check_integrity([(held, 9)])


@settings(deadline=None, max_examples=200)
@given(
    windows=WINDOWS,
    length=st.integers(1, 40),
    shared=st.integers(0, 40),
    data=st.data(),
    enabled=st.booleans(),
)
def test_a_context_that_fits_runs_alone_whatever_is_cached(
    windows: tuple[int | None, ...], length: int, shared: int, data: st.DataObject, enabled: bool
) -> None:
    kv = manager(
        *(PageGroup(most_pages(window, 40, PAGE_SIZE, CHUNK), window) for window in windows),
        enabled=enabled,
    )
    first = list(range(length))
    for history in (first, first[: min(shared, length)] + list(range(100, 140 - length))):
        kv.check_fits(max(1, len(history)))
        if not history:
            continue
        prompt = data.draw(st.integers(1, len(history)))
        held = kv.new_context(b"")
        hits = kv.match(held, array(history[:prompt]))
        assert kv.start(held, hits, prompt, num_spare=0)
        done = len(hits[0]) * PAGE_SIZE
        while done < len(history):
            limit = prompt if done < prompt else done + 1
            assert kv.extend(held, done, limit)
            done += min(limit - done, CHUNK)
            if done < limit:
                done = done // PAGE_SIZE * PAGE_SIZE
            kv.advance(held, array(history[:done]))
            kv.check_integrity([(held, done)])
        kv.release(held)
    assert kv.num_used == 0


@dataclass
class Holder:
    history: list[int]
    salt: bytes
    held: HeldPages
    written: int = 0


class ManagerMachine(RuleBasedStateMachine):
    """All that contexts do to pages, against a model of what the memory of each group holds.

    `memory` maps (group, page, offset) to the salt and history whose KV was written there.
    """

    @initialize(windows=WINDOWS, sizes=st.lists(st.integers(2, 14), min_size=3, max_size=3))
    def start(self, windows: tuple[int | None, ...], sizes: list[int]) -> None:
        self.groups = [PageGroup(*pair) for pair in zip(sizes, windows, strict=False)]
        self.kv = manager(*self.groups)
        self.memory: dict[tuple[int, int, int], tuple[bytes, tuple[int, ...]]] = {}
        self.holders: list[Holder] = []
        self.waiting: list[Holder] = []

    def admit(self, holder: Holder) -> bool:
        hits = self.kv.match(holder.held, array(holder.history))
        if not self.kv.start(holder.held, hits, len(holder.history), len(self.holders) % 2):
            assert holder.held.capacity == 0
            return False
        holder.written = len(hits[0]) * PAGE_SIZE
        assert holder.written < len(holder.history)
        self.holders.append(holder)
        return True

    def live(self, index: int, holder: Holder) -> list[int]:
        return holder.held.tables[index][holder.held.dropped[index] :]

    def preempt(self, holder: Holder) -> None:
        self.holders.remove(holder)
        self.kv.release(holder.held)
        self.waiting.append(holder)

    @rule(history=HISTORIES, salt=SALTS)
    def submit(self, history: list[int], salt: bytes) -> None:
        self.admit(Holder(history, salt, self.kv.new_context(salt)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), tail=HISTORIES)
    def share(self, data: st.DataObject, tail: list[int]) -> None:
        other = data.draw(st.sampled_from(self.holders))
        history = other.history + tail
        self.admit(Holder(history, other.salt, self.kv.new_context(other.salt)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """A chunk is written; without pages for it the context is preempted."""
        holder = data.draw(st.sampled_from(self.holders))
        if holder.written == len(holder.history):
            return
        held, start = holder.held, holder.written
        if not self.kv.extend(held, start, len(holder.history)):
            self.preempt(holder)
            return
        end = data.draw(st.integers(start + 1, min(len(holder.history), start + CHUNK)))
        if end < len(holder.history):
            end = max(start, end // PAGE_SIZE * PAGE_SIZE)
        for index in range(len(self.groups)):
            for position in range(start, end):
                page = held.tables[index][position // PAGE_SIZE]
                assert sum(self.live(index, other).count(page) for other in self.holders) == 1
                entry = (holder.salt, tuple(holder.history[: position + 1]))
                self.memory[index, page, position % PAGE_SIZE] = entry
        holder.written = end
        if end >= (held.committed + 1) * PAGE_SIZE:
            self.kv.advance(held, array(holder.history[:end]))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), token=st.integers(0, 1))
    def append(self, data: st.DataObject, token: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        if holder.written == len(holder.history):
            holder.history = [*holder.history, token]

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), preempt=st.booleans())
    def release(self, data: st.DataObject, preempt: bool) -> None:
        """The context ends or is cancelled, or is preempted to come back later."""
        holder = data.draw(st.sampled_from(self.holders))
        self.preempt(holder)
        if not preempt:
            self.waiting.remove(holder)

    @precondition(lambda self: self.waiting)
    @rule()
    def resume(self) -> None:
        if self.admit(self.waiting[0]):
            self.waiting.pop(0)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """What the context read or wrote is zeroed as soon as nobody else holds it."""
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.kv.fail(holder.held)
        self.scrub()

    def scrub(self) -> None:
        for index, pages in enumerate(self.kv.take_pages_to_scrub()):
            held = {page for holder in self.holders for page in self.live(index, holder)}
            assert not held & set(pages)
            for page in pages:
                for offset in range(PAGE_SIZE):
                    self.memory.pop((index, page, offset), None)

    @rule()
    def evict(self) -> None:
        for group in self.kv._groups:
            group.pool.release(group.pool.allocate(group.pool.num_free))
        assert self.kv.num_cached == 0

    @rule()
    def reset(self) -> None:
        self.kv.forget_all()

    @invariant()
    def counts_agree_with_the_tables(self) -> None:
        self.kv.check_integrity((holder.held, holder.written) for holder in self.holders)
        self.scrub()

    @invariant()
    def each_holder_reads_its_own_history(self) -> None:
        for holder in self.holders:
            for index, group in enumerate(self.groups):
                window = group.window or holder.written + 1
                for position in range(max(0, holder.written - window + 1), holder.written):
                    page = holder.held.tables[index][position // PAGE_SIZE]
                    assert page in self.live(index, holder)
                    expected = (holder.salt, tuple(holder.history[: position + 1]))
                    assert self.memory[index, page, position % PAGE_SIZE] == expected

    def teardown(self) -> None:
        for holder in self.holders:
            self.kv.release(holder.held)
        assert self.kv.num_used == 0


ManagerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestManager = ManagerMachine.TestCase

"""The store's bounds: bytes, number, what goes first, and what a chain costs."""

import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.server.engine import Caller
from quire.server.openai.responses.store import ENTRY_BYTES, ResponseStore, StoredResponse

ANN, BOB = Caller("ann", "ann"), Caller("bob", "bob")


def entry(name: str, size: int = 0, previous: str | None = None) -> StoredResponse:
    return StoredResponse(id=name, previous_id=previous, input=b"", body=b"x" * size)


def names(store: ResponseStore, caller: Caller | None = None) -> str:
    # The keys themselves: to find one is to read it.
    identity = "" if caller is None else caller.identity
    return "".join(name for owner, name in store._entries if owner == identity)


def test_what_was_read_longest_ago_goes_first() -> None:
    store = ResponseStore(10 * ENTRY_BYTES, 3)
    for name in "abc":
        store.put(None, entry(name))
    assert store.find(None, "a") is not None
    store.put(None, entry("d"))

    assert names(store) == "cad"
    assert store.find(None, "b") is None


def test_bytes_are_bounded() -> None:
    store = ResponseStore(3 * ENTRY_BYTES, 100)
    for name in "abc":
        store.put(None, entry(name))
    store.put(None, entry("d", ENTRY_BYTES))
    assert names(store) == "cd"
    store.put(None, entry("e", 3 * ENTRY_BYTES))

    # What can never fit takes nobody's place.
    assert names(store) == "cd"
    assert store.num_bytes == 3 * ENTRY_BYTES


def test_callers_are_apart() -> None:
    store = ResponseStore(10 * ENTRY_BYTES, 10)
    store.put(ANN, entry("a"))
    store.put(BOB, entry("b"))
    store.put(None, entry("c"))

    assert (names(store, ANN), names(store, BOB), names(store)) == ("a", "b", "c")
    assert store.find(BOB, "a") is None and not store.delete(None, "a")
    assert store.delete(ANN, "a") and not store.delete(ANN, "a")


def test_a_chain_is_oldest_first_and_costs_each_turn_once() -> None:
    store = ResponseStore(1000 * ENTRY_BYTES, 1000)
    for turn in range(200):
        store.put(None, entry(str(turn), 100, str(turn - 1) if turn else None))

    assert [one.id for one in store.chain(None, "199")] == [str(turn) for turn in range(200)]
    assert store.num_bytes == 200 * (ENTRY_BYTES + 100)
    store.delete(None, "7")
    with pytest.raises(KeyError, match="7"):
        store.chain(None, "199")
    assert len(store.chain(None, "6")) == 7


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "find", "delete"]),
            st.sampled_from([None, ANN, BOB]),
            st.integers(0, 5),
            st.integers(0, 3000),
        )
    )
)
def test_the_sizes_add_up(steps: list[tuple[str, Caller | None, int, int]]) -> None:
    store = ResponseStore(8 * ENTRY_BYTES, 5)
    there: set[tuple[Caller | None, int]] = set()
    for action, caller, name, size in steps:
        if action == "put" and (caller, name) not in there:
            store.put(caller, entry(str(name), size))
        elif action == "delete":
            assert store.delete(caller, str(name)) == ((caller, name) in there)
        else:
            assert (store.find(caller, str(name)) is not None) == ((caller, name) in there)
        there = {
            (owner, at)
            for owner in (None, ANN, BOB)
            for at in range(6)
            if str(at) in names(store, owner)
        }
        assert store.num_bytes == sum(one.num_bytes for one in store._entries.values())
        assert store.num_bytes <= 8 * ENTRY_BYTES and len(store) == len(there) <= 5


def test_what_is_counted_is_what_is_held() -> None:
    """orjson's results hold on to more memory than they have bytes."""
    store = ResponseStore(1000 * ENTRY_BYTES, 1000)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for turn in range(100):
        texts = [orjson.dumps([str(turn)]), orjson.dumps("x" * turn)]
        store.put(
            None, StoredResponse(id=str(turn), previous_id=None, input=texts[0], body=texts[1])
        )
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert after - before <= store.num_bytes

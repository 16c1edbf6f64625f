import pytest

from quire.pipelines.kv_cache.page_pool import PageContent, PagePool


def content(name: str) -> PageContent:
    return PageContent(name.encode(), b"tokens of " + name.encode())


def pool_with_freed(names: str) -> PagePool:
    """A pool of which pages 0, 1, ... hold these contents and were freed together."""
    pool = PagePool(len(names))
    pages = pool.allocate(len(names))
    for page, name in zip(pages, names, strict=True):
        assert pool.record(page, content(name))
    pool.release(pages)
    return pool


def test_a_pool_without_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="num_pages must be at least 1, not 0"):
        PagePool(0)


def test_allocation_takes_all_or_nothing() -> None:
    pool = PagePool(3)
    first = pool.allocate(2)
    with pytest.raises(ValueError, match="2 pages wanted, 1 free"):
        pool.allocate(2)
    assert (pool.num_used, pool.num_free) == (2, 1)
    assert sorted(first + pool.allocate(1)) == [0, 1, 2]


def test_freed_pages_stay_findable_and_the_tail_goes_first() -> None:
    pool = pool_with_freed("abc")
    assert pool.num_cached == 3
    assert [pool.allocate(1)[0] for _ in range(2)] == [2, 1]
    assert pool.find(content("a")) == 0
    assert pool.find(content("b")) is None
    assert pool.find(content("c")) is None
    assert pool.num_cached == 1


def test_pages_without_content_are_taken_before_cached_ones() -> None:
    pool = PagePool(3)
    pages = pool.allocate(3)
    pool.record(pages[0], content("a"))
    pool.release(pages[1:])
    pool.release(pages[:1])
    assert sorted(pool.allocate(2)) == pages[1:]
    assert pool.find(content("a")) == pages[0]


def test_a_hit_makes_a_page_recent_again() -> None:
    pool = pool_with_freed("ab")
    pool.retain([1])
    assert pool.num_cached == 1
    pool.release([1])
    assert pool.allocate(1) == [0]


def test_a_shared_page_is_free_only_after_its_last_holder() -> None:
    pool = PagePool(1)
    pages = pool.allocate(1)
    pool.retain(pages)
    pool.release(pages)
    assert not pool.is_free(0)
    pool.release(pages)
    assert pool.is_free(0)


def test_releasing_a_free_page_is_refused() -> None:
    pool = PagePool(2)
    with pytest.raises(ValueError, match="page 1 is released but nobody holds it"):
        pool.release([1])


def test_equal_digests_with_other_tokens_do_not_match() -> None:
    pool = pool_with_freed("a")
    assert pool.find(PageContent(b"a", b"other tokens")) is None


def test_a_digest_is_recorded_once() -> None:
    pool = PagePool(2)
    first, second = pool.allocate(2)
    assert pool.record(first, content("a"))
    assert not pool.record(second, content("a"))
    assert pool.find(content("a")) == first
    with pytest.raises(ValueError, match="recorded already"):
        pool.record(first, content("b"))


def test_forgetting_leaves_the_holders_alone() -> None:
    pool = pool_with_freed("abc")
    pool.retain([0])
    pool.forget([0, 1])
    assert (pool.num_used, pool.num_cached) == (1, 1)
    assert pool.allocate(1) == [1]
    pool.forget_all()
    assert pool.num_cached == 0
    pool.check_integrity([[0], [1]])


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("_holders", [2, 1, 0], "holders counted wrong"),
        ("_free", {0: None}, "the free list"),
        ("_page_of", {}, "content index"),
        ("_num_cached", 5, "are cached"),
    ],
)
def test_a_damaged_pool_is_found_out(attribute: str, value: object, message: str) -> None:
    pool = PagePool(3)
    pages = pool.allocate(2)
    pool.record(pages[0], content("a"))
    pool.check_integrity([pages])
    setattr(pool, attribute, value)
    with pytest.raises(RuntimeError, match=message):
        pool.check_integrity([pages])

"""Which context holds which pages in every page group, and which prefixes are known in all of them.

Owns a page pool and a prefix cache per group. One chain of digests per history serves all groups,
and a prefix is reused only where every group still has the pages that the tokens after it read.
"""

from collections.abc import Iterable, Sequence

from quire.pipelines.core.token_buffer import TokenArray
from quire.pipelines.kv_cache.page_group import PageGroup, first_page, most_pages, pages_ahead
from quire.pipelines.kv_cache.page_pool import PagePool
from quire.pipelines.kv_cache.prefix_cache import PageChain, PrefixCache

PageTables = list[list[int]]
"""Per group, page ids in the order of a history."""


class HeldPages:
    """What a context holds."""

    __slots__ = ("capacity", "chain", "committed", "dropped", "tables")

    def __init__(self, chain: PageChain, num_groups: int) -> None:
        self.chain = chain
        self.tables: PageTables = [[] for _ in range(num_groups)]
        self.dropped = [0] * num_groups
        """Leading entries of each table that the window has passed: page 0, not held."""
        self.capacity = 0
        """Tokens from the beginning for which every group has had a page; 0: nothing is held."""
        self.committed = 0
        """Leading pages already offered to the prefix cache."""


class PagedKVCacheManager:
    """The pages of one replica.

    `max_chunk` is the most tokens that one context runs in a step.
    """

    def __init__(
        self,
        groups: Sequence[PageGroup],
        *,
        page_size: int,
        max_chunk: int,
        enable_prefix_caching: bool = True,
    ) -> None:
        self._page_size = page_size
        self._max_chunk = max_chunk
        self._groups = [GroupPages(group, page_size, enable_prefix_caching) for group in groups]

    @property
    def num_used(self) -> int:
        """Pages of all groups that contexts hold."""
        return sum(group.pool.num_used for group in self._groups)

    @property
    def num_cached(self) -> int:
        """Free pages whose content can still be found."""
        return sum(group.pool.num_cached for group in self._groups)

    @property
    def num_pages(self) -> int:
        return sum(group.pool.num_pages for group in self._groups)

    @property
    def usage(self) -> float:
        """The share of pages held in the group with the greatest, 0..1."""
        return max(group.pool.num_used / group.pool.num_pages for group in self._groups)

    def check_fits(self, num_tokens: int) -> None:
        """Raise ValueError if a context alone could not hold the KV of `num_tokens` tokens."""
        for group in self._groups:
            pages = most_pages(group.window, num_tokens, self._page_size, self._max_chunk)
            if pages > group.pool.num_pages:
                raise ValueError(
                    f"the request needs {pages} pages of KV memory; "
                    f"there are {group.pool.num_pages}"
                )

    def new_context(self, salt: bytes) -> HeldPages:
        """Nothing yet. Histories with different salts never share pages."""
        return HeldPages(self._groups[0].cache.new_chain(salt), len(self._groups))

    def match(self, held: HeldPages, history: TokenArray) -> PageTables:
        """The pages of the longest prefix that is known in every group; nobody is made a holder.

        All tables have the same length, with page 0 where no token after the prefix reads.
        """
        tables: PageTables = [[] for _ in self._groups]
        limit, agreed, turn = history.size, 0, 0
        while agreed < len(tables):
            pages = tables[turn] = self._groups[turn].cache.match(held.chain, history, limit)
            agreed = agreed + 1 if len(pages) == limit else 1
            limit, turn = len(pages), (turn + 1) % len(tables)
        return tables

    def no_match(self) -> PageTables:
        return [[] for _ in self._groups]

    def start(self, held: HeldPages, hits: PageTables, num_tokens: int, num_spare: int) -> bool:
        """Hold the pages `hits` and those that come next in a history of `num_tokens`.

        False, and nothing is held, unless `num_spare` pages stay free in every group.
        """
        num_hits = len(hits[0])
        position = num_hits * self._page_size
        dropped = [first_page(group.window, position, self._page_size) for group in self._groups]
        live = [pages[first:] for pages, first in zip(hits, dropped, strict=True)]
        new = [self._num_ahead(group, position, num_tokens) - num_hits for group in self._groups]
        for group, pages, count in zip(self._groups, live, new, strict=True):
            if not group.has_room(pages, count + num_spare):
                return False
        for index, group in enumerate(self._groups):
            group.pool.retain(live[index])
            held.tables[index] = hits[index] + group.pool.allocate(new[index])
        held.dropped, held.committed = dropped, num_hits
        self._set_capacity(held)
        return True

    def extend(self, held: HeldPages, position: int, num_tokens: int) -> bool:
        """Hold what a step from `position` in a history of `num_tokens` needs besides.

        False, and nothing more is held, if a group has not that many free pages.
        """
        new = []
        for group, table in zip(self._groups, held.tables, strict=True):
            count = self._num_ahead(group, position, num_tokens) - len(table)
            if count > group.pool.num_free:
                return False
            new.append(count)
        for group, table, count in zip(self._groups, held.tables, new, strict=True):
            table += group.pool.allocate(count)
        self._set_capacity(held)
        return True

    def advance(self, held: HeldPages, written: TokenArray) -> None:
        """Make the full pages of `written` findable, and release those that the window has passed.

        `written` is the history up to the last token whose KV is written.
        """
        full = held.committed
        for index, group in enumerate(self._groups):
            table = held.tables[index]
            full = group.cache.commit(held.chain, written, table, held.committed)
            if group.window is not None:
                first = first_page(group.window, written.size, self._page_size)
                passed = slice(held.dropped[index], first)
                group.release(table[passed])
                table[passed] = [0] * (first - held.dropped[index])
                held.dropped[index] = first
        held.committed = full

    def release(self, held: HeldPages) -> None:
        """Let go of everything; full pages stay findable while memory lasts."""
        for index, group in enumerate(self._groups):
            group.release(held.tables[index][held.dropped[index] :])
        held.tables = self.no_match()
        held.dropped = [0] * len(self._groups)
        held.capacity = held.committed = 0

    def fail(self, held: HeldPages) -> None:
        """Release pages whose KV is not to be trusted: no history finds them again.

        Nor those that a window has passed; they are known by the digests of the history.
        """
        for index, group in enumerate(self._groups):
            dropped = held.dropped[index]
            group.distrust(held.tables[index][dropped:], held.chain[1 : dropped + 1])
        self.release(held)

    def take_pages_to_scrub(self) -> PageTables:
        """Per group, free pages that may hold NaN; each is handed out once. Empty if none does."""
        pages = [group.take_pages_to_scrub() for group in self._groups]
        return pages if any(pages) else []

    def forget_all(self) -> None:
        """Forget every cached page; contexts keep theirs."""
        for group in self._groups:
            group.cache.reset()

    def check_integrity(self, holders: Iterable[tuple[HeldPages, int]]) -> None:
        """Compare pages and counts with what contexts hold, given with their written tokens.

        Raises:
            RuntimeError: they do not agree, or a page that a token may read is not held.
        """
        contexts = list(holders)
        for index, group in enumerate(self._groups):
            group.pool.check_integrity(
                held.tables[index][held.dropped[index] :] for held, _ in contexts
            )
            for held, written in contexts:
                table, dropped = held.tables[index], held.dropped[index]
                if max(held.capacity, written) > len(table) * self._page_size:
                    raise RuntimeError(f"{len(table)} pages are too few for {written} tokens")
                if dropped > first_page(group.window, written, self._page_size) or any(
                    table[:dropped]
                ):
                    raise RuntimeError(f"{dropped} pages are dropped too early at {written}")

    def _num_ahead(self, group: "GroupPages", position: int, num_tokens: int) -> int:
        return pages_ahead(group.window, position, num_tokens, self._page_size, self._max_chunk)

    def _set_capacity(self, held: HeldPages) -> None:
        held.capacity = min(map(len, held.tables)) * self._page_size


class GroupPages:
    """The pages of one group, and which of them are to be scrubbed."""

    def __init__(self, group: PageGroup, page_size: int, enable_prefix_caching: bool) -> None:
        self.window = group.window
        self.pool = PagePool(group.num_pages)
        self.cache = PrefixCache(
            self.pool, page_size, enabled=enable_prefix_caching, window=group.window
        )
        self._suspects: set[int] = set()
        self._to_scrub: list[int] = []

    def has_room(self, hits: list[int], count: int) -> bool:
        """Whether `count` pages are free beside `hits`."""
        return count <= self.pool.num_free - sum(self.pool.is_free(page) for page in hits)

    def release(self, pages: list[int]) -> None:
        self.pool.release(pages)
        if self._suspects:
            # A suspect page that others share is scrubbed when the last of them lets go.
            self._scrub_free(pages)

    def distrust(self, pages: list[int], digests: Iterable[bytes]) -> None:
        """Forget `pages` and those known by `digests`; each is scrubbed when it is free."""
        recorded = self.cache.recorded(digests)
        self.pool.forget(pages + recorded)
        self._suspects.update(pages, recorded)
        self._scrub_free(recorded)

    def take_pages_to_scrub(self) -> list[int]:
        pages, self._to_scrub = self._to_scrub, []
        return pages

    def _scrub_free(self, pages: list[int]) -> None:
        free = [page for page in pages if page in self._suspects and self.pool.is_free(page)]
        self._suspects.difference_update(free)
        self._to_scrub += free

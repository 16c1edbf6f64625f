"""Who holds which page of KV memory, what a page is known to contain, and which page is taken next.

Owns the counts and the order of reuse, never the memory itself. The design is vLLM's block pool:
a page that nobody holds stays findable by its content until somebody needs the memory.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class PageContent(NamedTuple):
    """What a full page holds: the KV of `tokens` after the history that `digest` stands for."""

    digest: bytes
    """Digest of the whole history up to the end of the page."""
    tokens: bytes
    """The page's own int32 token ids."""


class PagePool:
    """Pages 0 .. num_pages - 1, each held by any number of contexts.

    No page is reserved: tables are padded with 0, but kernels never read past a context's length or
    before its window.
    A free page is taken in this order: pages without known content, then the least recently freed.

    Raises:
        ValueError: `num_pages` is below 1.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"num_pages must be at least 1, not {num_pages}")
        self.num_pages = num_pages
        self._holders = [0] * num_pages
        self._contents: list[PageContent | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))
        self._num_cached = 0

    @property
    def num_free(self) -> int:
        """Pages nobody holds, cached ones included: what `allocate` can give."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    @property
    def num_cached(self) -> int:
        """Free pages whose content can still be found."""
        return self._num_cached

    def is_free(self, page: int) -> bool:
        return self._holders[page] == 0

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages for one holder; what they contained is forgotten.

        Raises:
            ValueError: fewer pages are free; none is taken.
        """
        if count > len(self._free):
            raise ValueError(f"{count} pages wanted, {len(self._free)} free")
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
            if self._drop_content(page):
                self._num_cached -= 1
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """Add a holder to each of `pages`, free or not."""
        for page in pages:
            if self._holders[page] == 0:
                del self._free[page]
                self._num_cached -= self._contents[page] is not None
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Remove a holder from each of a context's `pages`, given in the order of its history.

        The last page is freed first, so that a prefix outlives what follows it.

        Raises:
            ValueError: nobody holds the page.
        """
        for page in reversed(pages):
            if self._holders[page] == 0:
                raise ValueError(f"page {page} is released but nobody holds it")
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free[page] = None
                if self._contents[page] is None:
                    self._free.move_to_end(page, last=False)
                else:
                    self._num_cached += 1

    def page_of(self, digest: bytes) -> int | None:
        """The page whose content has this digest."""
        return self._page_of.get(digest)

    def find(self, content: PageContent) -> int | None:
        """The page that holds `content`; tokens are compared, so equal digests cannot mislead."""
        page = self._page_of.get(content.digest)
        return page if page is not None and self._contents[page] == content else None

    def record(self, page: int, content: PageContent) -> bool:
        """Make a full page that somebody holds findable; false if its digest is taken already."""
        if self._holders[page] == 0 or self._contents[page] is not None:
            raise ValueError(f"page {page} is free or its content is recorded already")
        if self._page_of.setdefault(content.digest, page) != page:
            return False
        self._contents[page] = content
        return True

    def forget(self, pages: Iterable[int]) -> None:
        """Make `pages` unfindable; who holds them does not change."""
        for page in pages:
            if self._drop_content(page) and self._holders[page] == 0:
                self._num_cached -= 1
                self._free.move_to_end(page, last=False)

    def forget_all(self) -> None:
        self.forget(list(self._page_of.values()))

    def _drop_content(self, page: int) -> bool:
        content = self._contents[page]
        if content is None:
            return False
        self._contents[page] = None
        del self._page_of[content.digest]
        return True

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Compare every count with the page tables of all holders.

        Raises:
            RuntimeError: a count, the free list or the content index is wrong.
        """
        holders = [0] * self.num_pages
        for table in tables:
            for page in table:
                holders[page] += 1
        if holders != self._holders:
            wrong = [page for page in range(self.num_pages) if holders[page] != self._holders[page]]
            raise RuntimeError(f"pages {wrong}: holders counted wrong")
        free = [page for page, count in enumerate(holders) if count == 0]
        if sorted(self._free) != free:
            raise RuntimeError(f"the free list {sorted(self._free)} should be {free}")
        recorded = {content.digest: page for page, content in enumerate(self._contents) if content}
        if recorded != self._page_of:
            raise RuntimeError("the content index and the pages' contents differ")
        cached = sum(self._contents[page] is not None for page in free)
        if cached != self._num_cached:
            raise RuntimeError(f"{cached} pages are cached, {self._num_cached} counted")

"""Finds pages whose KV a new history can reuse, by a hash chain over its full pages.

The digest of a page is SHA-256 over the digest before it and the page's token ids; the chain
starts with the digest of a salt, so that histories with different salts never meet.
"""

from collections.abc import Iterable
from hashlib import sha256

from quire.pipelines.core.token_buffer import TokenArray
from quire.pipelines.kv_cache.page_group import first_page
from quire.pipelines.kv_cache.page_pool import PageContent, PagePool

PageChain = list[bytes]
"""Digests of one history: the salt's, then one per full page hashed so far. Kept by the history's
owner and valid as long as the history only grows, so that no page is hashed twice."""


class PrefixCache:
    """Full pages only. Disabled, it finds and records nothing.

    With a `window` a prefix needs only the pages that a token after it reads.
    """

    def __init__(
        self, pool: PagePool, page_size: int, *, enabled: bool = True, window: int | None = None
    ) -> None:
        self._pool = pool
        self._page_size = page_size
        self._enabled = enabled
        self._window = window

    def new_chain(self, salt: bytes) -> PageChain:
        return [sha256(salt).digest()]

    def match(self, chain: PageChain, history: TokenArray, limit: int | None = None) -> list[int]:
        """The pages of the longest known prefix of `history`, in order; nobody is made a holder.

        At least one token of the history is left out, since its logits are wanted. The prefix has
        at most `limit` pages. Page 0 stands for those that no token after it reads.
        """
        if not self._enabled:
            return []
        most = (history.size - 1) // self._page_size
        if limit is not None:
            most = min(most, limit)
        if self._window is not None:
            return self._match_window(chain, history, most)
        pages: list[int] = []
        for index in range(most):
            page = self._find(chain, history, index)
            if page is None:
                break
            pages.append(page)
        return pages

    def _match_window(self, chain: PageChain, history: TokenArray, most: int) -> list[int]:
        """As `match`: backwards from `most` pages to a prefix whose last ones are all known."""
        end, pages = most, list[int]()
        first = first_page(self._window, end * self._page_size, self._page_size)
        for index in range(most - 1, -1, -1):
            if index < first:
                break
            page = self._find(chain, history, index)
            if page is None:
                end, pages = index, []
                first = first_page(self._window, end * self._page_size, self._page_size)
            else:
                pages.append(page)
        return [0] * first + pages[::-1]

    def commit(self, chain: PageChain, history: TokenArray, pages: list[int], done: int) -> int:
        """Record the full pages of `history` from the `done`-th on; returns how many are full.

        `history` ends with the last token whose KV is written. A page that is known already is
        given up for the known one, in place: the same history gives the same KV.
        """
        full = history.size // self._page_size
        if self._enabled:
            for index in range(done, full):
                content = self._content(chain, history, index)
                known = self._pool.find(content)
                if known is None:
                    self._pool.record(pages[index], content)
                else:
                    self._pool.retain([known])
                    self._pool.release([pages[index]])
                    pages[index] = known
        return full

    def recorded(self, digests: Iterable[bytes]) -> list[int]:
        """The pages that are known under `digests`, whoever wrote them."""
        found = (self._pool.page_of(digest) for digest in digests)
        return [page for page in found if page is not None]

    def reset(self) -> None:
        """Forget every page; contexts keep the pages they hold."""
        self._pool.forget_all()

    def _find(self, chain: PageChain, history: TokenArray, index: int) -> int | None:
        if index + 1 < len(chain) and self._pool.page_of(chain[index + 1]) is None:
            return None
        return self._pool.find(self._content(chain, history, index))

    def _content(self, chain: PageChain, history: TokenArray, index: int) -> PageContent:
        for place in range(len(chain) - 1, index + 1):
            chain.append(sha256(chain[place] + self._tokens(history, place)).digest())
        return PageContent(chain[index + 1], self._tokens(history, index))

    def _tokens(self, history: TokenArray, index: int) -> bytes:
        start = index * self._page_size
        return history[start : start + self._page_size].tobytes()

"""Finds pages whose KV a new history can reuse, by a hash chain over its full pages.

The digest of a page is SHA-256 over the digest before it and the page's token ids; the chain
starts with the digest of a salt, so that histories with different salts never meet.
"""

from hashlib import sha256

from quire.pipelines.core.token_buffer import TokenArray
from quire.pipelines.kv_cache.page_pool import PageContent, PagePool

PageChain = list[bytes]
"""Digests of one history: the salt's, then one per full page hashed so far. Kept by the history's
owner and valid as long as the history only grows, so that no page is hashed twice."""


class PrefixCache:
    """Full pages only. Disabled, it finds and records nothing."""

    def __init__(self, pool: PagePool, page_size: int, *, enabled: bool = True) -> None:
        self._pool = pool
        self._page_size = page_size
        self._enabled = enabled

    def new_chain(self, salt: bytes) -> PageChain:
        return [sha256(salt).digest()]

    def match(self, chain: PageChain, history: TokenArray) -> list[int]:
        """The pages of the longest known prefix of `history`, in order; nobody is made a holder.

        At least one token of the history is left out, since its logits are wanted.
        """
        pages: list[int] = []
        if self._enabled:
            for index in range((history.size - 1) // self._page_size):
                page = self._pool.find(self._content(chain, history, index))
                if page is None:
                    break
                pages.append(page)
        return pages

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

    def reset(self) -> None:
        """Forget every page; contexts keep the pages they hold."""
        self._pool.forget_all()

    def _content(self, chain: PageChain, history: TokenArray, index: int) -> PageContent:
        start = index * self._page_size
        tokens = history[start : start + self._page_size].tobytes()
        if index + 1 == len(chain):
            chain.append(sha256(chain[index] + tokens).digest())
        return PageContent(chain[index + 1], tokens)

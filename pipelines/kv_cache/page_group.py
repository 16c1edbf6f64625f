"""Page groups: layers that keep the KV of the same tokens have pages of their own. No torch.

Layers with a window need only a context's last tokens. So a context has a page table per group;
where the window has passed, the table keeps its length and page 0 stands for what was released.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageGroup:
    """How many pages the layers with this `window` have; None: those that keep all tokens.

    Raises:
        ValueError: a number is below 1.
    """

    num_pages: int
    window: int | None = None

    def __post_init__(self) -> None:
        if self.num_pages < 1:
            raise ValueError(f"num_pages must be at least 1, not {self.num_pages}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")


def first_page(window: int | None, position: int, page_size: int) -> int:
    """The first page that the token at `position`, or a later one, reads."""
    return 0 if window is None else max(0, position - window + 1) // page_size


def pages_ahead(
    window: int | None, position: int, num_tokens: int, page_size: int, max_chunk: int
) -> int:
    """Pages, from the first of a history of `num_tokens`, that must exist before a step runs.

    The step begins at `position` and runs at most `max_chunk` tokens. With a window the pages of a
    long prompt come step by step, except those of the first window: who waits for them waits
    before it starts.
    """
    if window is not None:
        num_tokens = min(num_tokens, max(window - 1, position) + max_chunk)
    return -(-num_tokens // page_size)


def most_pages(window: int | None, num_tokens: int, page_size: int, max_chunk: int) -> int:
    """The most pages that a context holds at once until it has `num_tokens`.

    With a window these are the pages of a step and of the window before it, and one more, since
    the window need not begin where a page does.
    """
    pages = -(-num_tokens // page_size)
    return pages if window is None else min(pages, -(-(window - 1 + max_chunk) // page_size) + 1)


def window_pages(window: int | None, num_tokens: int, page_size: int) -> int:
    """The most pages that a context of `num_tokens` tokens holds while it decodes."""
    pages = -(-num_tokens // page_size)
    return pages if window is None else min(pages, -(-(window - 1) // page_size) + 1)

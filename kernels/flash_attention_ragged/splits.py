"""Where the keys of a context are cut: what makes a row's bits independent of its kernel."""

from collections.abc import Iterable

SPLIT_KEYS = 512
"""Keys are cut at multiples of this; splits are merged in key order."""


def count_splits(kv_lengths: Iterable[int], sliding_window: int | None = None) -> int:
    """The splits that the last tokens of contexts with these numbers of keys attend to, or more.

    With a window it counts the most that the window may touch.
    """
    if sliding_window is None:
        return sum(-(-length // SPLIT_KEYS) for length in kv_lengths)
    most = (sliding_window + SPLIT_KEYS - 2) // SPLIT_KEYS + 1
    return sum(min(most, -(-length // SPLIT_KEYS)) for length in kv_lengths)

"""The progress bar of a loading model; shown on a terminal, silent elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A function to call with (phase, fraction 0..1)."""
    with tqdm(total=100, unit="%", disable=None, leave=False) as bar:

        def show(phase: str, fraction: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.update(round(fraction * 100) - bar.n)

        yield show

"""The engine under random workloads and faults."""

from collections import Counter
from collections.abc import Callable

import pytest

Simulate = Callable[[int], Counter[str]]
SEEDS = 200
BATCHES = 8


@pytest.fixture(scope="module")
def totals() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_stream_equals_the_stream_alone(
    simulate: Simulate, totals: Counter[str], batch: int
) -> None:
    for seed in range(batch, SEEDS, BATCHES):
        try:
            totals.update(simulate(seed))
        except Exception as error:
            error.add_note(f"simulation seed {seed}")
            raise


def test_the_simulation_reaches_every_situation(simulate: Simulate, totals: Counter[str]) -> None:
    if not totals:
        for seed in range(20):
            totals.update(simulate(seed))
    for situation in (
        *("done", "aborted", "failed", "rejected"),
        *("crashes", "resumed", "preemptions", "hits"),
        *("window preemptions", "window hits"),
    ):
        assert totals[situation] >= 20, situation


def test_the_same_seed_gives_the_same_run(simulate: Simulate) -> None:
    assert simulate(7) == simulate(7)

"""How metric families are made: labels that all of them share, buckets that are vLLM's."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_LATENCY_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_LATENCY_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0,
    50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKEN_COUNT_BUCKETS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
"""vLLM cuts this series at the model's length, which is not known before the model is."""
ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICES_BUCKETS = (1, 2, 5, 10, 20)
PREEMPTION_BUCKETS = (1, 2, 3, 4, 5, 10, 20)


class Families:
    """Makes families that all carry the same labels first, and their children."""

    def __init__(self, registry: CollectorRegistry, base: Mapping[str, str]) -> None:
        self._registry = registry
        self._base = base

    def gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, list(self._base), registry=self._registry).labels(**self._base)

    def counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, list(self._base), registry=self._registry).labels(**self._base)

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(name, text, list(self._base), buckets=buckets, registry=self._registry)
        return family.labels(**self._base)

    def gauges(self, name: str, text: str, label: str, values: Iterable[str]) -> dict[str, Gauge]:
        family = Gauge(name, text, [*self._base, label], registry=self._registry)
        return {value: family.labels(**self._base, **{label: value}) for value in values}

    def counters(
        self, name: str, text: str, label: str, values: Iterable[str]
    ) -> dict[str, Counter]:
        return {key[0]: counter for key, counter in self.grid(name, text, {label: values}).items()}

    def grid(
        self, name: str, text: str, labels: Mapping[str, Iterable[str]]
    ) -> dict[tuple[str, ...], Counter]:
        """A counter per combination of the labels' values, in the labels' order."""
        family = Counter(name, text, [*self._base, *labels], registry=self._registry)
        return {
            values: family.labels(*self._base.values(), *values)
            for values in product(*labels.values())
        }

    def info(self, name: str, text: str, labels: Sequence[str]) -> "InfoGauge":
        family = Gauge(name, text, [*self._base, *labels], registry=self._registry)
        return InfoGauge(family, self._base, labels)


class InfoGauge:
    """A gauge that is 1 and whose labels tell; one series at a time, "unknown" at first."""

    def __init__(self, family: Gauge, base: Mapping[str, str], labels: Sequence[str]) -> None:
        self._family = family
        self._base = base
        self.set(dict.fromkeys(labels, "unknown"))

    def set(self, labels: Mapping[str, object]) -> None:
        self._family.clear()
        self._family.labels(**self._base, **labels).set(1)

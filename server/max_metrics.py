"""The same numbers under the names that MAX serve gives them, `maxserve_*`.

A view of families that exist: nothing is counted twice. Labels are MAX's, so model_name and engine
are left out, and what differs only in a label that MAX has not is added up. Milliseconds are
seconds times 1000, bounds of buckets included; the buckets themselves are ours. What Quire does not
measure has no series (docs/monitoring.md lists it).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

_MILLISECONDS = 1000.0
_UNCOUNTED = frozenset(
    {"/livez", "/readyz", "/startupz", "/health", "/ping", "/version", "/metrics"}
)
"""Handlers that MAX leaves out of its counts of requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alias:
    name: str
    """Without the `_total` of a counter."""
    sources: tuple[str, ...]
    """Families that are added up."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Labels that a sample must have."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ours to MAX's."""
    constant: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0


def _milliseconds(name: str, source: str, **labels: str) -> _Alias:
    return _Alias(
        name=f"{name}_milliseconds", sources=(source,), labels=labels, scale=_MILLISECONDS
    )


_ALIASES = (
    _Alias(
        name="request_count",
        sources=("http_requests",),
        labels={"status": "code", "handler": "path"},
    ),
    _milliseconds("request_time", "http_request_duration_seconds", handler="path"),
    _milliseconds("time_to_first_token", "vllm:time_to_first_token_seconds"),
    _milliseconds("time_per_output_token", "vllm:request_time_per_output_token_seconds"),
    _milliseconds("itl", "vllm:inter_token_latency_seconds"),
    _Alias(name="num_input_tokens", sources=("vllm:prompt_tokens",)),
    _Alias(name="num_output_tokens", sources=("vllm:generation_tokens",)),
    _Alias(name="input_tokens_per_request_tokens", sources=("vllm:request_prompt_tokens",)),
    _Alias(name="output_tokens_per_request_tokens", sources=("vllm:request_generation_tokens",)),
    # MAX counts a request as running from its arrival to its end.
    _Alias(
        name="num_requests_running",
        sources=("vllm:num_requests_running", "vllm:num_requests_waiting"),
    ),
    _Alias(name="num_requests_queued", sources=("vllm:num_requests_waiting",)),
    _Alias(name="batch_input_tokens", sources=("vllm:iteration_tokens_total",)),
    _Alias(name="cache_num_used_blocks", sources=("quire_kv_pages",), where={"state": "used"}),
    _Alias(name="cache_num_total_blocks", sources=("quire_kv_pages",)),
    _Alias(name="cache_preemption_count", sources=("vllm:num_preemptions",)),
    _Alias(name="cache_hits_tokens", sources=("vllm:prefix_cache_hits",), constant={"tier": "g0"}),
    _Alias(
        name="cache_misses_tokens",
        sources=("quire_computed_tokens",),
        where={"phase": "prefill"},
    ),
)

MAX_NAMES = tuple(f"maxserve_{alias.name}" for alias in _ALIASES)


def max_families(families: Iterable[Metric]) -> Iterator[Metric]:
    """MAX's families, made of `families` as they were collected."""
    found = {family.name: family for family in families}
    for alias in _ALIASES:
        yield _renamed(alias, [found[source] for source in alias.sources])


def _renamed(alias: _Alias, sources: list[Metric]) -> Metric:
    name = f"maxserve_{alias.name}"
    shown = " + ".join(source.name for source in sources)
    family = Metric(name, f"{shown}, by MAX's name.", sources[0].type)
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for source in sources:
        for sample in source.samples:
            suffix = sample.name.removeprefix(source.name)
            if suffix == "_created" or not alias.where.items() <= sample.labels.items():
                continue
            if sample.labels.get("handler") in _UNCOUNTED:
                continue
            labels = {theirs: sample.labels[ours] for ours, theirs in alias.labels.items()}
            labels.update(alias.constant)
            if suffix == "_bucket":
                labels["le"] = _scaled_bound(sample.labels["le"], alias.scale)
            is_count = suffix in ("_bucket", "_count")
            key = (name + suffix, tuple(labels.items()))
            value = sample.value if is_count else sample.value * alias.scale
            sums[key] = sums.get(key, 0.0) + value
    family.samples = [Sample(name, dict(labels), value) for (name, labels), value in sums.items()]
    return family


def _scaled_bound(bound: str, scale: float) -> str:
    # Rounded, since 0.07 * 1000 is not 70.
    return bound if bound == "+Inf" or scale == 1.0 else str(round(float(bound) * scale, 9))

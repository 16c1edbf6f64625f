"""MAX's names show the same values, in its units and with its labels, and nothing of their own."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire.pipelines.core.messages import EngineStats, Ready, StepOutput
from quire.server.max_metrics import MAX_NAMES
from quire.server.metrics import Metrics
from quire.server.request_metrics import RequestTimes

DOCUMENT = Path(__file__).parents[2] / "docs" / "monitoring.md"


def samples(metrics: Metrics) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(metrics.render()[0].decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def total(found: dict[str, list[Any]], name: str, **labels: str) -> float:
    return sum(s.value for s in found[name] if labels.items() <= s.labels.items())


@pytest.fixture(scope="module")
def found() -> dict[str, list[Any]]:
    """After a random day."""
    metrics, chance = Metrics("demo", maxserve_names=True), random.Random(5)
    metrics.on_ready(Ready(1, 0, "cpu", "bfloat16", 512, 10, 32, 8, 2048, [], ""))
    metrics.watch_contexts(lambda: 5)
    for step in range(1, 60):
        prompt, generated = chance.randrange(1, 400), chance.randrange(1, 40)
        first = chance.random() * 3
        metrics.requests.on_prompt(prompt, prompt // 3)
        metrics.requests.on_first_token(first)
        for _ in range(generated - 1):
            metrics.requests.on_inter_token(chance.random() / 5)
        metrics.requests.on_request_end(
            RequestTimes(
                arrival=0.0,
                queue_seconds=0.0,
                first_token_at=first,
                last_token_at=first + generated * 0.07,
                ended_at=9.0,
                prompt_tokens=prompt,
                cached_tokens=prompt // 3,
                generation_tokens=generated,
                finish_reason="stop",
                max_tokens=None,
            )
        )
        for method, handler in (("POST", "/v1/completions"), ("GET", "other"), ("GET", "/livez")):
            status = chance.choice((200, 404))
            metrics.http.on_request(handler, method, status, first, received=1, sent=1)
        metrics.http.on_request("/v1/completions", "GET", 405, 0.001, received=0, sent=9)
        stats = EngineStats(
            running=2, used_pages=3, cached_pages=4, total_pages=10, prefix_hit_tokens=7 * step,
            prefill_tokens=5 * step, decode_tokens=step, preemptions=step,
        )  # fmt: skip
        metrics.on_step(StepOutput(1, *[b""] * 6, {}, {}, 13, stats))
    return samples(metrics)


def test_without_the_option_there_is_none_of_them() -> None:
    assert not any(name.startswith("maxserve") for name in samples(Metrics("demo")))


def test_every_name_is_there_and_no_other(found: dict[str, list[Any]]) -> None:
    shown = {name for name in found if name.startswith("maxserve_")}
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in shown} == set(MAX_NAMES)
    assert not any("model_name" in s.labels for name in shown for s in found[name])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("num_input_tokens_total", ("vllm:prompt_tokens_total",)),
        ("num_output_tokens_total", ("vllm:generation_tokens_total",)),
        (
            "num_requests_running",
            ("vllm:num_requests_running", "vllm:num_requests_waiting"),
        ),
        ("num_requests_queued", ("vllm:num_requests_waiting",)),
        ("cache_preemption_count_total", ("vllm:num_preemptions_total",)),
        ("cache_hits_tokens_total", ("vllm:prefix_cache_hits_total",)),
        ("cache_num_total_blocks", ("quire_kv_pages",)),
        ("input_tokens_per_request_tokens_sum", ("vllm:request_prompt_tokens_sum",)),
        ("output_tokens_per_request_tokens_sum", ("vllm:request_generation_tokens_sum",)),
        ("batch_input_tokens_sum", ("vllm:iteration_tokens_total_sum",)),
    ],
)
def test_numbers_are_the_same(
    found: dict[str, list[Any]], theirs: str, ours: tuple[str, ...]
) -> None:
    assert total(found, f"maxserve_{theirs}") == sum(total(found, name) for name in ours) > 0


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("time_to_first_token", "vllm:time_to_first_token_seconds"),
        ("itl", "vllm:inter_token_latency_seconds"),
        ("time_per_output_token", "vllm:request_time_per_output_token_seconds"),
    ],
)
def test_seconds_become_milliseconds_in_the_same_buckets(
    found: dict[str, list[Any]], theirs: str, ours: str
) -> None:
    name = f"maxserve_{theirs}_milliseconds"
    assert total(found, f"{name}_sum") == pytest.approx(total(found, f"{ours}_sum") * 1000)
    assert total(found, f"{name}_count") == total(found, f"{ours}_count")
    buckets = {float(s.labels["le"]): s.value for s in found[f"{name}_bucket"]}
    expected = {float(s.labels["le"]) * 1000: s.value for s in found[f"{ours}_bucket"]}
    assert [*buckets.values()] == [*expected.values()]
    assert [*buckets] == pytest.approx([*expected])
    # As a person would write them.
    assert all(bound == round(bound, 3) for bound in buckets)


def test_requests_are_counted_by_code_and_path_and_probes_are_not(
    found: dict[str, list[Any]],
) -> None:
    counts = found["maxserve_request_count_total"]
    assert {frozenset(s.labels) for s in counts} == {frozenset({"code", "path"})}
    assert {s.labels["path"] for s in counts} == {"/v1/completions", "other"}
    for code in ("200", "404", "405"):
        ours = total(found, "http_requests_total", handler="/v1/completions", status=code)
        shown = total(found, "maxserve_request_count_total", path="/v1/completions", code=code)
        assert shown == ours > 0
    path = {"path": "/v1/completions"}
    assert total(found, "maxserve_request_time_milliseconds_count", **path) == 118
    assert total(found, "maxserve_request_time_milliseconds_bucket", **path, le="5.0") >= 59


def test_tokens_through_the_cache(found: dict[str, list[Any]]) -> None:
    assert total(found, "maxserve_cache_hits_tokens_total", tier="g0") == 7 * 59
    assert total(found, "maxserve_cache_misses_tokens_total") == 5 * 59
    assert total(found, "maxserve_cache_num_used_blocks") == 3


def test_the_document_lists_every_name() -> None:
    rows = re.findall(
        r"^\| `(maxserve_[a-z_]+?)(?:_total)?(?:\{.*\})?` \|", DOCUMENT.read_text(), re.MULTILINE
    )
    assert rows == list(MAX_NAMES)

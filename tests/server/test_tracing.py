"""Options of traces, what they cost where they are not wanted, which requests are traced."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from otlp_collector import Collector
from pydantic import ValidationError

from quire.config.errors import ConfigError
from quire.config.settings import ServeSettings
from quire.pipelines.core.context import Pooling, TextContext
from quire.pipelines.core.sampling_params import SamplingParams
from quire.server.engine import ChoiceTimeline
from quire.server.metrics import Metrics
from quire.server.otlp import MAX_TRACED_CHOICES, OtlpTracing
from quire.server.tracing import load_tracing

SAMPLED, UNSAMPLED = (f"00-{'ab' * 16}-{'cd' * 8}-{flags}" for flags in ("01", "00"))


@pytest.fixture
def collector() -> Iterator[Collector]:
    with contextlib.closing(Collector()) as collector:
        yield collector


class Sent:
    """`Metrics.on_spans`, remembered."""

    def __init__(self) -> None:
        self.counts = {True: 0, False: 0}

    def __call__(self, count: int, *, were_sent: bool) -> None:
        self.counts[were_sent] += count


def scope(name: str = "one", *headers: tuple[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(key.encode(), value.encode()) for key, value in headers],
        "quire.arrival": time.monotonic(),
        "quire.request_id": name,
    }


def context(choice: int = 0, pooling: Pooling | None = None) -> TextContext:
    prompt = np.arange(1, 4, dtype=np.int32)
    params = SamplingParams(max_new_tokens=9)
    return TextContext(1, prompt, params, max_length=64, choice=choice, pooling=pooling)


def line(index: int = 0, **changes: Any) -> ChoiceTimeline:
    told: ChoiceTimeline = {
        "index": index,
        "state": "stop",
        "error": None,
        "prompt_tokens": 3,
        "cached_tokens": 1,
        "generated_tokens": 4,
        "max_tokens": 9,
        "submitted_after": 0.1,
        "scheduled_after": 0.2,
        "first_token_after": 0.4,
        "last_token_after": 0.7,
        "ended_after": 0.7,
        "preemptions": 0,
        "resumes": 0,
        "worker_epoch": 1,
    }
    return {**told, **changes}  # type: ignore[typeddict-item]


LOADED = """
import sys, quire.server.daemon
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "google."))])
"""


def test_without_an_endpoint_nothing_of_it_is_loaded() -> None:
    assert load_tracing(ServeSettings(), Metrics("demo")) is None
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOADED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "quire.server.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    settings = ServeSettings(otlp_traces_endpoint="http://127.0.0.1:4318")
    with pytest.raises(ConfigError, match=r"pip install 'quire\[otel\]'"):
        load_tracing(settings, Metrics("demo"))


def test_variables_that_make_no_sense_are_a_wrong_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "3")
    settings = ServeSettings(otlp_traces_endpoint="http://127.0.0.1:4318")
    with pytest.raises(ConfigError, match="OTEL_"):
        load_tracing(settings, Metrics("demo"))


def test_a_ratio_without_an_endpoint_is_a_wrong_option() -> None:
    with pytest.raises(ConfigError, match="needs an --otlp-traces-endpoint"):
        load_tracing(ServeSettings(otlp_traces_sample_ratio=0.5), Metrics("demo"))


@pytest.mark.parametrize(
    ("given", "posted"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://collector/v1/traces", "https://collector/v1/traces"),
        ("https://collector/own/path", "https://collector/own/path"),
    ],
)
def test_an_endpoint_without_a_path_gets_the_usual_one(given: str, posted: str) -> None:
    assert ServeSettings(otlp_traces_endpoint=given).otlp_traces_endpoint == posted


@pytest.mark.parametrize(
    "given", ["collector:4318", "grpc://collector:4317", "http://", "", "http://[x"]
)
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="otlp_traces_endpoint"):
        ServeSettings(otlp_traces_endpoint=given)


@pytest.mark.parametrize(
    ("ratio", "parent", "least", "most"),
    [
        (1.0, None, 400, 400),
        (0.25, None, 50, 150),
        (0.0, None, 0, 0),
        (0.0, SAMPLED, 400, 400),
        (1.0, UNSAMPLED, 0, 0),
    ],
)
def test_a_parent_or_else_the_ratio_decides(
    collector: Collector, ratio: float, parent: str | None, least: int, most: int
) -> None:
    sent = Sent()
    tracing = OtlpTracing(f"{collector.url}/v1/traces", ratio, sent)
    headers = [("traceparent", parent)] if parent else []
    for number in range(400):
        trace = tracing.begin(scope(str(number), *headers))
        trace.on_admission([context()])
        trace.on_choice_end(context(), line(state="abort", scheduled_after=None))
        trace.end("/v1/completions", 200)
    tracing.close()
    traced = [span for span in collector.spans if span.name == "POST /v1/completions"]
    assert least <= len(traced) <= most
    assert sent.counts == {True: len(collector.spans), False: 0}


def test_two_parents_are_none(collector: Collector) -> None:
    tracing = OtlpTracing(f"{collector.url}/v1/traces", 1.0, Sent())
    headers = [("traceparent", SAMPLED), ("traceparent", SAMPLED)]
    tracing.begin(scope("one", *headers)).end(None, 404)
    states = [("traceparent", SAMPLED), ("tracestate", "a=1"), ("tracestate", "b=2")]
    tracing.begin(scope("two", *states)).end(None, 404)
    tracing.close()
    one, two = sorted(collector.spans, key=lambda s: s.attributes["gen_ai.request.id"])
    assert (one.name, one.parent_id) == ("POST", "")
    assert (two.parent_id, two.trace_state) == ("cd" * 8, "a=1,b=2")


def test_phases_are_of_some_choices_and_counts_of_all(collector: Collector) -> None:
    tracing = OtlpTracing(f"{collector.url}/v1/traces", 1.0, Sent())
    trace = tracing.begin(scope())
    contexts = [context(choice) for choice in range(40)]
    trace.on_admission(contexts)
    for index, ended in enumerate(contexts):
        trace.on_choice_end(ended, line(index))
    trace.end("/v1/completions", 200)
    tracing.close()
    span = collector.of_request("one")
    assert len(collector.children_of(span)) == 3 * MAX_TRACED_CHOICES
    assert span.attributes["gen_ai.usage.num_sequences"] == 40
    assert span.attributes["gen_ai.usage.output_tokens"] == 160
    assert span.attributes["gen_ai.usage.input_tokens"] == 3


def test_a_vector_has_no_first_token(collector: Collector) -> None:
    tracing = OtlpTracing(f"{collector.url}/v1/traces", 1.0, Sent())
    trace = tracing.begin(scope())
    texts = [context(pooling="mean"), context(pooling="mean")]
    for text in texts:
        trace.on_admission([text])
        trace.on_choice_end(text, line(generated_tokens=0))
    trace.end("/v1/embeddings", 200)
    tracing.close()
    span = collector.of_request("one")
    assert span.attributes["gen_ai.operation.name"] == "embeddings"
    assert span.attributes["gen_ai.usage.input_tokens"] == 6
    assert "gen_ai.latency.time_to_first_token" not in span.attributes
    assert "gen_ai.request.temperature" not in span.attributes
    names = [child.name for child in collector.children_of(span)]
    assert sorted(names) == ["prefill", "prefill", "queue", "queue"]
    last = max(child.end - span.start for child in collector.children_of(span))
    assert last == pytest.approx(0.7, abs=1e-4)


def test_what_ends_after_its_reply_is_still_sent(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    tracing = OtlpTracing(f"{collector.url}/v1/traces", 1.0, Sent())
    trace = tracing.begin(scope())
    trace.end("/v1/responses", 202)
    trace.on_admission([context()])
    trace.on_choice_end(context(), line())
    trace.end("/v1/responses", 202)
    tracing.close()
    span = collector.of_request("one")
    assert [c.name for c in collector.children_of(span)] == ["queue", "prefill", "decode"]
    assert not caplog.records


def test_spans_that_a_collector_refuses_are_counted(collector: Collector) -> None:
    collector.status = 403
    sent = Sent()
    tracing = OtlpTracing(f"{collector.url}/v1/traces", 1.0, sent)
    tracing.begin(scope()).end(None, 200)
    tracing.close()
    assert sent.counts == {True: 0, False: 1}

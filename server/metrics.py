"""`Metrics`: every number Prometheus scrapes, on a registry of its own.

`vllm:*` families keep vLLM's names, labels and buckets, so that its dashboards, autoscalers and
benchmarks work unchanged; `quire_*` families are ours; `http_*` are those of the FastAPI
instrumentator. Every label value comes from configuration or from a closed list, never from a
request, and every child is made here, so that each series exists before the first request.
"""

import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Literal, get_args

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from quire.pipelines.core.messages import EngineStats, Ready, StepOutput
from quire.server.batches.metrics import BatchMetrics
from quire.server.http_metrics import HttpMetrics
from quire.server.lifecycle import Lifecycle
from quire.server.max_metrics import max_families
from quire.server.metric_families import ITERATION_BUCKETS, Families
from quire.server.request_metrics import RequestMetrics

RejectionReason = Literal["max_num_queued_reqs", "max_concurrency_per_key"]

_REQUEST_TYPES = {"/v1/chat/completions": "chat_completions", "/v1/responses": "responses"}


class Metrics:
    """The daemon's metrics. Methods are named after what happened; each costs microseconds.

    `maxserve_names`: tell them under MAX's names as well.
    """

    def __init__(self, model_name: str, *, maxserve_names: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._maxserve_names = maxserve_names
        self._num_live: Callable[[], int] = lambda: 0
        self._num_running = 0
        self._epoch = 0
        self._stats = EngineStats()
        self._worker_pid: int | None = None
        base = {"model_name": model_name, "engine": "0"}
        families = Families(self._registry, base)
        self._make_engine(families)
        self.requests = RequestMetrics(families)
        self._make_quire(families)
        self.batches = BatchMetrics(families)
        self._make_front(Families(self._registry, {"model_name": model_name}))
        self._memory_plan = Gauge(
            "quire_memory_plan_bytes",
            "Memory the worker planned with at its start, by part.",
            [*base, "part"],
            registry=self._registry,
        )
        self._base = base
        self.http = HttpMetrics(self._registry)
        ProcessCollector(registry=self._registry)
        ProcessCollector("quire_worker", self._pid_of_worker, registry=self._registry)

    def _make_front(self, make: Families) -> None:
        """What vLLM counts before its engine, so without the label of one."""
        self._rejections = make.counters(
            "vllm:admission_rejections",
            "Requests refused because the queue was full, or their key had too many.",
            "reason",
            get_args(RejectionReason),
        )
        self._tool_parsers = make.grid(
            "vllm:tool_call_parser_invocations",
            "Choices that might call a tool, by whether they did; streamed ones count once too.",
            {
                "mode": ("streaming", "non_streaming"),
                "outcome": ("tool_call", "no_tool_call"),
                "request_type": ("chat_completions", "responses", "other"),
            },
        )

    def _make_engine(self, make: Families) -> None:
        self._running = make.gauge("vllm:num_requests_running", "Requests in the running batch.")
        waiting = make.gauge("vllm:num_requests_waiting", "Requests waiting to be run.")
        waiting.set_function(lambda: float(self._num_waiting))
        by_reason = make.gauges(
            "vllm:num_requests_waiting_by_reason",
            "Requests waiting to be run, by what they wait for; deferred: for a worker.",
            "reason",
            ("capacity", "deferred"),
        )
        by_reason["capacity"].set_function(lambda: self._num_waiting * float(self._has_worker))
        by_reason["deferred"].set_function(lambda: self._num_waiting * float(not self._has_worker))
        self._usage = make.gauge(
            "vllm:kv_cache_usage_perc",
            "Share of KV pages held by running requests, 0..1, in the fullest page group.",
        )
        self._cache_config = make.info(
            "vllm:cache_config_info",
            "The KV cache, as labels; block is what Quire calls page.",
            ("block_size", "num_gpu_blocks", "cache_dtype", "kv_cache_size_tokens")
            + ("kv_cache_max_concurrency",),
        )
        self._prefix_queries = make.counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._prefix_hits = make.counter(
            "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."
        )
        self._preemptions = make.counter("vllm:num_preemptions", "Requests preempted.")
        self._iteration_tokens = make.histogram(
            "vllm:iteration_tokens_total", "Tokens of one step.", ITERATION_BUCKETS
        )

    def _make_quire(self, make: Families) -> None:
        self._ready = make.gauge("quire_ready", "1 while the engine serves.")
        self._startup = make.gauge(
            "quire_startup_seconds", "Process start to first ready; 0 before that."
        )
        self._restarts = make.counter("quire_worker_restarts", "Worker deaths while serving.")
        self._resumed = make.counter(
            "quire_streams_resumed", "Live streams carried over a worker death."
        )
        self._stale = make.counter(
            "quire_stale_frames_dropped", "Frames of a dead worker's epoch that were dropped."
        )
        self._disconnects = make.counter(
            "quire_client_disconnects", "Clients that left before the end of their reply."
        )
        self._slow_readers = make.counter(
            "quire_slow_readers_aborted", "Streams ended because the client did not read."
        )
        self._deadlines = make.counter(
            "quire_deadlines_exceeded", "Contexts aborted because their request's time was up."
        )
        self._steps = make.counter("quire_steps", "Steps the worker ran.")
        self._step_seconds = make.counter(
            "quire_step_seconds", "Seconds the worker spent in steps."
        )
        self._computed = make.counters(
            "quire_computed_tokens",
            "Tokens that went through the model, recomputed ones included.",
            "phase",
            ("prefill", "decode"),
        )
        self._pages = make.gauges(
            "quire_kv_pages", "KV pages of all groups by state; they add up to all.", "state",
            ("used", "cached", "free"),
        )  # fmt: skip
        self._spans = make.counters(
            "quire_trace_spans",
            "Spans that the trace collector took, or that were given up on.",
            "outcome",
            ("sent", "failed"),
        )
        self._responses = make.gauge(
            "quire_responses_stored", "Responses of /v1/responses that are kept."
        )
        self._response_bytes = make.gauge(
            "quire_responses_stored_bytes", "Memory of the responses that are kept."
        )
        self._engine_info = make.info(
            "quire_engine_info", "What the worker runs on.", ("device", "dtype", "max_length")
        )
        make.info("quire_build_info", "Version.", ("version", "python")).set(
            {"version": version("quire"), "python": platform.python_version()}
        )

    def watch(self, lifecycle: Lifecycle) -> None:
        """Read ready and startup seconds from `lifecycle` at each scrape."""
        self._ready.set_function(lambda: float(lifecycle.is_ready))
        self._startup.set_function(lambda: lifecycle.startup_seconds or 0.0)

    def watch_contexts(self, num_live: Callable[[], int]) -> None:
        """Read how many contexts are admitted and not ended from `num_live` at each scrape."""
        self._num_live = num_live

    def watch_responses(self, count: Callable[[], int], num_bytes: Callable[[], int]) -> None:
        """Read how many responses are kept, and their bytes, at each scrape."""
        self._responses.set_function(lambda: float(count()))
        self._response_bytes.set_function(lambda: float(num_bytes()))

    @property
    def _has_worker(self) -> bool:
        return self._worker_pid is not None

    @property
    def _num_waiting(self) -> int:
        # Not what the worker says: while a step runs or a worker is replaced, it says nothing.
        return max(0, self._num_live() - self._num_running)

    # The engine.

    def on_ready(self, ready: Ready) -> None:
        """A worker is ready; its counters begin at 0."""
        self._epoch = ready.epoch
        self._stats = EngineStats()
        self._worker_pid = ready.pid
        self._pages["free"].set(ready.num_pages)
        self._cache_config.set(
            {
                "block_size": ready.page_size,
                "num_gpu_blocks": ready.num_pages,
                "cache_dtype": ready.dtype,
                "kv_cache_size_tokens": ready.kv_cache_tokens,
                "kv_cache_max_concurrency": round(ready.kv_cache_concurrency, 2),
            }
        )
        self._engine_info.set(
            {"device": ready.device, "dtype": ready.dtype, "max_length": ready.max_length}
        )
        self._memory_plan.clear()
        for part, size in ready.memory_plan:
            self._memory_plan.labels(**self._base, part=part).set(size)

    def on_step(self, output: StepOutput) -> None:
        """Take over the worker's gauges, and what its counters gained since the last step."""
        if output.epoch != self._epoch:
            return
        new, old, self._stats = output.stats, self._stats, output.stats
        self._set_load(new)
        if output.input_tokens:
            self._iteration_tokens.observe(output.input_tokens)
        for counter, gained in (
            (self._steps, new.steps - old.steps),
            (self._step_seconds, new.step_seconds - old.step_seconds),
            (self._computed["prefill"], new.prefill_tokens - old.prefill_tokens),
            (self._computed["decode"], new.decode_tokens - old.decode_tokens),
            (self._prefix_queries, new.prefix_query_tokens - old.prefix_query_tokens),
            (self._prefix_hits, new.prefix_hit_tokens - old.prefix_hit_tokens),
            (self._preemptions, new.preemptions - old.preemptions),
        ):
            if gained > 0:
                counter.inc(gained)

    def on_worker_restart(self) -> None:
        """The worker is gone, and with it its pages and its batch."""
        self._worker_pid = None
        self._set_load(EngineStats())
        self._restarts.inc()

    def _set_load(self, stats: EngineStats) -> None:
        self._num_running = stats.running
        self._running.set(stats.running)
        self._usage.set(stats.kv_usage)
        self._pages["used"].set(stats.used_pages)
        self._pages["cached"].set(stats.cached_pages)
        self._pages["free"].set(stats.total_pages - stats.used_pages - stats.cached_pages)

    def on_tool_parser(self, num_calls: int, *, route: str, is_streamed: bool) -> None:
        """The text of a choice that might call tools ended; `route` is its request's template."""
        mode = "streaming" if is_streamed else "non_streaming"
        outcome = "tool_call" if num_calls else "no_tool_call"
        self._tool_parsers[mode, outcome, _REQUEST_TYPES.get(route, "other")].inc()

    # What went wrong.

    def on_rejection(self, reason: RejectionReason) -> None:
        self._rejections[reason].inc()

    def on_resumed(self, count: int) -> None:
        self._resumed.inc(count)

    def on_stale_frame(self) -> None:
        self._stale.inc()

    def on_disconnect(self) -> None:
        self._disconnects.inc()

    def on_slow_reader(self) -> None:
        self._slow_readers.inc()

    def on_deadline(self) -> None:
        self._deadlines.inc()

    def on_spans(self, count: int, *, were_sent: bool) -> None:
        """Spans left for the collector, or were given up on; called by the exporter's thread."""
        self._spans["sent" if were_sent else "failed"].inc(count)

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        families = list(self._registry.collect())
        if self._maxserve_names:
            families += max_families(families)
        return generate_latest(_Collected(families)), CONTENT_TYPE_LATEST

    def _pid_of_worker(self) -> int:
        # No process has number 0 under /proc: without a worker there are no series.
        return self._worker_pid or 0


class _Collected(Collector):
    """Families of one moment."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

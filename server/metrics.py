"""`Metrics`: every number Prometheus scrapes, on a registry of its own.

`vllm:*` families keep vLLM's names, labels and buckets, so that its dashboards, autoscalers and
benchmarks work unchanged; `quire_*` families are ours; `http_*` are those of the FastAPI
instrumentator. Every label value comes from configuration or from a closed list, never from a
request, and every child is made here, so that each series exists before the first request.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal, get_args

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from quire.pipelines.core.messages import EngineStats, Ready, StepOutput
from quire.server.lifecycle import Lifecycle
from quire.server.metric_families import (
    CHOICES_BUCKETS,
    HTTP_LATENCY_BUCKETS,
    ITERATION_BUCKETS,
    REQUEST_LATENCY_BUCKETS,
    TOKEN_COUNT_BUCKETS,
    TOKEN_LATENCY_BUCKETS,
    TTFT_BUCKETS,
    Families,
)

FinishReason = Literal["stop", "length", "abort", "error"]
RejectionReason = Literal["max_num_queued_reqs", "max_concurrency_per_key"]

HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimes:
    """One ended context. Times are monotonic seconds, None if it never came so far."""

    arrival: float
    queue_seconds: float | None
    """From its arrival to its first schedule."""
    first_token_at: float | None
    last_token_at: float | None
    ended_at: float
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    finish_reason: FinishReason
    max_tokens: int | None
    """As the request asked; None if it did not."""


class Metrics:
    """The daemon's metrics. Methods are named after what happened; each costs microseconds."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._epoch = 0
        self._stats = EngineStats()
        self._worker_pid: int | None = None
        base = {"model_name": model_name, "engine": "0"}
        families = Families(self._registry, base)
        self._make_engine(families)
        self._make_requests(families)
        self._make_quire(families)
        # vLLM's family has no engine label.
        self._rejections = Families(self._registry, {"model_name": model_name}).counters(
            "vllm:admission_rejections",
            "Requests refused because the queue was full, or their key had too many.",
            "reason",
            get_args(RejectionReason),
        )
        self._memory_plan = Gauge(
            "quire_memory_plan_bytes",
            "Memory the worker planned with at its start, by part.",
            [*base, "part"],
            registry=self._registry,
        )
        self._base = base
        self._make_http()
        ProcessCollector(registry=self._registry)
        ProcessCollector("quire_worker", self._pid_of_worker, registry=self._registry)

    def _make_engine(self, make: Families) -> None:
        self._running = make.gauge("vllm:num_requests_running", "Requests in the running batch.")
        self._waiting = make.gauge("vllm:num_requests_waiting", "Requests waiting to be run.")
        self._waiting_by_reason = make.gauges(
            "vllm:num_requests_waiting_by_reason",
            "Requests waiting to be run, by what they wait for.",
            "reason",
            ("capacity", "deferred"),
        )
        self._usage = make.gauge(
            "vllm:kv_cache_usage_perc",
            "Share of KV pages held by running requests, 0..1, in the fullest page group.",
        )
        self._cache_config = make.info(
            "vllm:cache_config_info",
            "The KV cache, as labels; block is what Quire calls page.",
            ("block_size", "num_gpu_blocks", "cache_dtype", "kv_cache_size_tokens"),
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

    def _make_requests(self, make: Families) -> None:
        self._prompt_tokens = make.counter(
            "vllm:prompt_tokens", "Prompt tokens of ended requests, cached ones included."
        )
        self._cached_tokens = make.counter(
            "vllm:prompt_tokens_cached", "Prompt tokens of ended requests that were cached."
        )
        self._prompt_sources = make.counters(
            "vllm:prompt_tokens_by_source",
            "Prompt tokens of ended requests, by where their KV came from.",
            "source",
            ("local_compute", "local_cache_hit"),
        )
        self._generation_tokens = make.counter("vllm:generation_tokens", "Tokens generated.")
        self._ended = make.counters(
            "vllm:request_success", "Ended requests.", "finished_reason", get_args(FinishReason)
        )

        def latency(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return make.histogram(f"vllm:{name}_seconds", text, buckets)

        self._ttft = latency("time_to_first_token", "Arrival to first token.", TTFT_BUCKETS)
        self._inter_token = latency(
            "inter_token_latency", "Between two tokens of a request.", TOKEN_LATENCY_BUCKETS
        )
        self._time_per_token = latency(
            "request_time_per_output_token",
            "Mean time per token after the first, per request.",
            TOKEN_LATENCY_BUCKETS,
        )
        self._e2e = latency("e2e_request_latency", "Arrival to end.", REQUEST_LATENCY_BUCKETS)
        self._queue = latency(
            "request_queue_time", "Arrival to first schedule.", REQUEST_LATENCY_BUCKETS
        )
        self._prefill = latency(
            "request_prefill_time", "First schedule to first token.", REQUEST_LATENCY_BUCKETS
        )
        self._decode = latency(
            "request_decode_time", "First to last token.", REQUEST_LATENCY_BUCKETS
        )
        self._inference = latency(
            "request_inference_time", "First schedule to last token.", REQUEST_LATENCY_BUCKETS
        )

        def tokens(name: str, text: str) -> Histogram:
            return make.histogram(f"vllm:request_{name}", text, TOKEN_COUNT_BUCKETS)

        self._request_prompt = tokens("prompt_tokens", "Prompt tokens of a request.")
        self._request_generation = tokens("generation_tokens", "Tokens a request generated.")
        self._request_max_generation = tokens(
            "max_num_generation_tokens", "Most tokens one choice of a request generated."
        )
        self._request_computed = tokens(
            "prefill_kv_computed_tokens", "Prompt tokens of a request that were not cached."
        )
        self._request_max_tokens = tokens("params_max_tokens", "max_tokens that requests asked.")
        self._request_n = make.histogram(
            "vllm:request_params_n", "Contexts (prompts times n) of a request.", CHOICES_BUCKETS
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
        self._engine_info = make.info(
            "quire_engine_info", "What the worker runs on.", ("device", "dtype", "max_length")
        )
        make.info("quire_build_info", "Version.", ("version", "python")).set(
            {"version": version("quire"), "python": platform.python_version()}
        )

    def _make_http(self) -> None:
        self._http_requests = Counter(
            "http_requests",
            "HTTP requests; status 499: the client left or stopped reading.",
            ["handler", "method", "status"],
            registry=self._registry,
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "From the request's headers to the reply's last byte.",
            ["handler", "method"],
            buckets=HTTP_LATENCY_BUCKETS,
            registry=self._registry,
        )

    def watch(self, lifecycle: Lifecycle) -> None:
        """Read ready and startup seconds from `lifecycle` at each scrape."""
        self._ready.set_function(lambda: float(lifecycle.is_ready))
        self._startup.set_function(lambda: lifecycle.startup_seconds or 0.0)

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
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._waiting_by_reason["capacity"].set(stats.waiting)
        self._usage.set(stats.kv_usage)
        self._pages["used"].set(stats.used_pages)
        self._pages["cached"].set(stats.cached_pages)
        self._pages["free"].set(stats.total_pages - stats.used_pages - stats.cached_pages)

    # Requests.

    def on_admission(self, num_contexts: int) -> None:
        """A request was admitted: prompts times n contexts."""
        self._request_n.observe(num_contexts)

    def on_rejection(self, reason: RejectionReason) -> None:
        self._rejections[reason].inc()

    def on_first_token(self, seconds: float) -> None:
        self._generation_tokens.inc()
        self._ttft.observe(seconds)

    def on_inter_token(self, seconds: float) -> None:
        """One more token of a context, `seconds` after the one before it."""
        self._generation_tokens.inc()
        self._inter_token.observe(seconds)

    def on_request_end(self, times: RequestTimes) -> None:
        """A context ended, for whatever reason; what it never reached is not observed."""
        self._ended[times.finish_reason].inc()
        self._e2e.observe(times.ended_at - times.arrival)
        if times.max_tokens is not None:
            self._request_max_tokens.observe(times.max_tokens)
        if times.queue_seconds is not None:
            self._queue.observe(times.queue_seconds)
        if times.first_token_at is None or times.last_token_at is None:
            return
        computed = times.prompt_tokens - times.cached_tokens
        self._prompt_tokens.inc(times.prompt_tokens)
        self._cached_tokens.inc(times.cached_tokens)
        self._prompt_sources["local_compute"].inc(computed)
        self._prompt_sources["local_cache_hit"].inc(times.cached_tokens)
        self._request_prompt.observe(times.prompt_tokens)
        self._request_computed.observe(computed)
        self._request_generation.observe(times.generation_tokens)
        self._request_max_generation.observe(times.generation_tokens)
        scheduled = times.arrival + (times.queue_seconds or 0.0)
        decoding = times.last_token_at - times.first_token_at
        self._prefill.observe(max(0.0, times.first_token_at - scheduled))
        self._inference.observe(max(0.0, times.last_token_at - scheduled))
        self._decode.observe(decoding)
        if times.generation_tokens > 1:
            self._time_per_token.observe(decoding / (times.generation_tokens - 1))

    # What went wrong, and HTTP.

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

    def on_http_request(self, handler: str, method: str, status: int, seconds: float) -> None:
        """A reply ended. `handler` is a route's template, or "other" for a path without one."""
        method = method if method in HTTP_METHODS else "other"
        self._http_requests.labels(handler, method, str(status)).inc()
        self._http_seconds.labels(handler, method).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _pid_of_worker(self) -> int:
        # No process has number 0 under /proc: without a worker there are no series.
        return self._worker_pid or 0

"""The `vllm:` families of requests: tokens, latencies and ends, exact after each event.

A context is one choice of one prompt: what vLLM calls a request, except in `request_params_n` and
`request_max_num_generation_tokens`, which are per prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client import Histogram

from quire.server.metric_families import (
    CHOICES_BUCKETS,
    PREEMPTION_BUCKETS,
    REQUEST_LATENCY_BUCKETS,
    TOKEN_COUNT_BUCKETS,
    TOKEN_LATENCY_BUCKETS,
    TTFT_BUCKETS,
    Families,
)

FinishReason = Literal["stop", "length", "abort", "error"]


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
    preemptions: int = 0


class RequestMetrics:
    """What happens to contexts, told by `EngineClient`."""

    def __init__(self, make: Families) -> None:
        self._prompt_tokens = make.counter(
            "vllm:prompt_tokens", "Prompt tokens processed, cached ones included."
        )
        self._cached_tokens = make.counter(
            "vllm:prompt_tokens_cached", "Prompt tokens that were cached."
        )
        self._cached_sources = make.counters(
            "vllm:prompt_tokens_cached_by_source",
            "Prompt tokens that were cached, by the tier that held them.",
            "source",
            ("device",),
        )
        self._prompt_sources = make.counters(
            "vllm:prompt_tokens_by_source",
            "Prompt tokens processed, by where their KV came from.",
            "source",
            ("local_compute", "local_cache_hit"),
        )
        self._generation_tokens = make.counter("vllm:generation_tokens", "Tokens generated.")
        self._ended = make.counters(
            "vllm:request_success", "Ended requests.", "finished_reason", get_args(FinishReason)
        )
        self._corrupted = make.counter(
            "vllm:corrupted_requests", "Requests that ended because the model gave NaN or infinity."
        )
        self._request_preemptions = make.histogram(
            "vllm:request_num_preemptions",
            "How often a request was preempted.",
            PREEMPTION_BUCKETS,
        )
        self._make_latencies(make)
        self._make_sizes(make)

    def _make_latencies(self, make: Families) -> None:
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

    def _make_sizes(self, make: Families) -> None:
        def tokens(name: str, text: str) -> Histogram:
            return make.histogram(f"vllm:request_{name}", text, TOKEN_COUNT_BUCKETS)

        self._request_prompt = tokens("prompt_tokens", "Prompt tokens of a request.")
        self._request_generation = tokens("generation_tokens", "Tokens a request generated.")
        self._request_max_generation = tokens(
            "max_num_generation_tokens", "Most tokens that one choice of a prompt generated."
        )
        self._request_computed = tokens(
            "prefill_kv_computed_tokens", "Prompt tokens of a request that were not cached."
        )
        self._request_max_tokens = tokens("params_max_tokens", "max_tokens that requests asked.")
        self._request_n = make.histogram(
            "vllm:request_params_n", "Choices (n) of a prompt.", CHOICES_BUCKETS
        )

    def on_prompt(self, num_tokens: int, num_cached: int) -> None:
        """A context's prompt was processed: its first token, or its vector, is there."""
        self._prompt_tokens.inc(num_tokens)
        self._cached_tokens.inc(num_cached)
        self._cached_sources["device"].inc(num_cached)
        self._prompt_sources["local_compute"].inc(num_tokens - num_cached)
        self._prompt_sources["local_cache_hit"].inc(num_cached)

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
        self._request_preemptions.observe(times.preemptions)
        if times.max_tokens is not None:
            self._request_max_tokens.observe(times.max_tokens)
        if times.queue_seconds is not None:
            self._queue.observe(times.queue_seconds)
        if times.first_token_at is None or times.last_token_at is None:
            return
        self._request_prompt.observe(times.prompt_tokens)
        self._request_computed.observe(times.prompt_tokens - times.cached_tokens)
        self._request_generation.observe(times.generation_tokens)
        scheduled = times.arrival + (times.queue_seconds or 0.0)
        decoding = times.last_token_at - times.first_token_at
        self._prefill.observe(max(0.0, times.first_token_at - scheduled))
        self._inference.observe(max(0.0, times.last_token_at - scheduled))
        self._decode.observe(decoding)
        if times.generation_tokens > 1:
            self._time_per_token.observe(decoding / (times.generation_tokens - 1))

    def on_choices_end(self, num_choices: int, most_tokens: int) -> None:
        """All choices of a prompt ended; the longest has `most_tokens`."""
        self._request_n.observe(num_choices)
        self._request_max_generation.observe(most_tokens)

    def on_corrupted(self) -> None:
        """A context ended because the model gave NaN or infinity."""
        self._corrupted.inc()

"""Traces by OpenTelemetry: one server span per request, spans of its phases, sent as OTLP over HTTP.

Attributes are those of vLLM's traces and of OpenTelemetry's GenAI and HTTP conventions. No text of a
prompt or an output is in them, and no path as the client wrote it. Spans are sent by a thread of
their own from a bounded queue: a collector that is slow or gone costs spans, never a request.
"""

import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from quire.pipelines.core.context import TextContext
from quire.server.engine import ChoiceTimeline
from quire.server.http_metrics import HTTP_METHODS
from quire.server.logs import request_details

MAX_TRACED_CHOICES = 16
"""Choices of a request that get spans of their own; the request's span tells of all."""

_OPERATIONS = {
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
}

Value = str | bool | int | float | Sequence[str]


class OnSpans(Protocol):
    def __call__(self, count: int, *, were_sent: bool) -> None: ...


class OtlpTracing:
    """Implements `server.tracing.Tracing`.

    `endpoint` is the URL that spans are posted to. `sample_ratio` of the requests without a parent
    are traced; one with a parent is traced if that is. The SDK's OTEL_* variables count: headers,
    certificates, time-outs, the size of the queue, attributes of the resource.

    Raises:
        ValueError: one of them makes no sense.
    """

    def __init__(self, endpoint: str, sample_ratio: float, on_spans: OnSpans) -> None:
        ours = Resource({"service.name": "quire", "service.version": version("quire")})
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()),
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            shutdown_on_exit=False,
        )
        sender = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(_CountingExporter(sender, on_spans)))
        self._tracer = self._provider.get_tracer("quire", version("quire"))
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope) -> "OtlpTrace":
        headers = Headers(scope=scope)
        # Two parents are none (W3C Trace Context, 4.1); several tracestate headers are one.
        parents, states = headers.getlist("traceparent"), headers.getlist("tracestate")
        carrier = {"traceparent": parents, "tracestate": [",".join(states)]}
        context = Context()
        if len(parents) == 1:
            context = self._propagator.extract(carrier, context)
        return OtlpTrace(self._tracer, context, scope)

    def close(self) -> None:
        self._provider.shutdown()


class _CountingExporter(SpanExporter):
    """Sends by `sender` and tells how that went; `sender` logs why it did not."""

    def __init__(self, sender: SpanExporter, on_spans: OnSpans) -> None:
        self._sender = sender
        self._on_spans = on_spans

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._sender.export(spans)
        self._on_spans(len(spans), were_sent=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._sender.shutdown()


class OtlpTrace:
    """Implements `server.tracing.HttpTrace`."""

    def __init__(self, tracer: Tracer, parent: Context, scope: Scope) -> None:
        self._tracer = tracer
        self._scope = scope
        self._arrival: float = scope["quire.arrival"]
        # Spans are stamped with the time of day, and everything here is measured on another clock.
        self._began_ns = time.time_ns() - int((time.monotonic() - self._arrival) * 1e9)
        method = scope["method"]
        self._name = method if method in HTTP_METHODS else "HTTP"
        self._span = tracer.start_span(
            self._name,
            parent,
            SpanKind.SERVER,
            {
                "gen_ai.request.id": scope["quire.request_id"],
                "http.request.method": method if method in HTTP_METHODS else "_OTHER",
            },
            start_time=self._began_ns,
        )
        self.trace_id = format_trace_id(self._span.get_span_context().trace_id)
        self._num_choices = 0
        self._ended: list[ChoiceTimeline] = []
        self._prompt_tokens = 0
        self._cached_tokens = 0

    def on_admission(self, contexts: Sequence[TextContext]) -> None:
        if self._span.is_recording() and not self._num_choices:
            self._span.set_attributes(_request_attributes(contexts))
        self._num_choices += len(contexts)

    def on_choice_end(self, context: TextContext, line: ChoiceTimeline) -> None:
        if not self._span.get_span_context().trace_flags.sampled:
            return
        if context.pooling is not None:
            # A vector is no token.
            line = {**line, "first_token_after": None, "last_token_after": None}
        self._ended.append(line)
        if context.choice == 0:
            # A prompt counts once, whatever the number of its choices.
            self._prompt_tokens += line["prompt_tokens"]
            self._cached_tokens += line["cached_tokens"]
        if len(self._ended) <= MAX_TRACED_CHOICES:
            self._trace_phases(line)

    def end(self, route: str | None, status: int) -> None:
        span, seconds = self._span, time.monotonic() - self._arrival
        if not span.is_recording():
            return
        attributes: dict[str, Value] = {"http.response.status_code": status}
        if route is not None:
            span.update_name(f"{self._name} {route}")
            attributes["http.route"] = route
        if (model := request_details(self._scope).model) is not None:
            attributes |= {"gen_ai.request.model": model, "gen_ai.response.model": model}
        if self._ended:
            attributes |= _reply_attributes(self._ended)
            attributes |= {
                "gen_ai.latency.e2e": seconds,
                "gen_ai.operation.name": _OPERATIONS.get(route or "", "generate_content"),
                "gen_ai.usage.prompt_tokens": self._prompt_tokens,
                "gen_ai.usage.input_tokens": self._prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": self._cached_tokens,
                "gen_ai.usage.num_sequences": self._num_choices,
            }
        failed = [line["error"] for line in self._ended if line["state"] == "error"]
        if failed or status >= 500:
            attributes["error.type"] = (failed[0] if failed else None) or str(status)
            span.set_status(Status(StatusCode.ERROR))
        span.set_attributes(attributes)
        span.end(self._began_ns + int(seconds * 1e9))

    def _trace_phases(self, line: ChoiceTimeline) -> None:
        """Spans of the phases that a context reached, each up to the next one or its end."""
        ended = line["ended_after"]
        assert ended is not None
        begins = (
            ("queue", line["submitted_after"]),
            ("prefill", line["scheduled_after"]),
            ("decode", line["first_token_after"]),
        )
        reached = [(name, at) for name, at in begins if at is not None]
        ends = [at for _, at in reached[1:]] + [ended]
        parent = set_span_in_context(self._span, Context())
        shared: dict[str, Value] = {
            "quire.choice": line["index"],
            "quire.worker_epoch": line["worker_epoch"],
            "quire.preemptions": line["preemptions"],
            "quire.resumes": line["resumes"],
        }
        for (name, begin), end in zip(reached, ends, strict=True):
            attributes = shared | _phase_attributes(name, line)
            start = self._began_ns + int(begin * 1e9)
            span = self._tracer.start_span(
                name, parent, SpanKind.INTERNAL, attributes, start_time=start
            )
            span.end(max(start, self._began_ns + int(end * 1e9)))


def _request_attributes(contexts: Sequence[TextContext]) -> dict[str, Value]:
    """Sampling parameters, alike for all contexts of a request; never its stop strings."""
    first = contexts[0]
    if first.pooling is not None:
        return {"gen_ai.provider.name": "quire"}
    params = first.params
    attributes: dict[str, Value] = {
        "gen_ai.provider.name": "quire",
        "gen_ai.request.n": max(context.choice for context in contexts) + 1,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.request.seed": params.seed,
    }
    if params.max_new_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = params.max_new_tokens
    return attributes


def _reply_attributes(lines: Sequence[ChoiceTimeline]) -> dict[str, Value]:
    """Of the ended contexts together: times from the first to reach a phase to the last to leave."""
    lines = sorted(lines, key=lambda line: line["index"])
    generated = sum(line["generated_tokens"] for line in lines)
    attributes: dict[str, Value] = {
        "gen_ai.response.finish_reasons": [line["state"] for line in lines],
        "gen_ai.usage.completion_tokens": generated,
        "gen_ai.usage.output_tokens": generated,
    }
    submitted = min(line["submitted_after"] for line in lines)
    scheduled = _earliest(line["scheduled_after"] for line in lines)
    first = _earliest(line["first_token_after"] for line in lines)
    last = max((line["last_token_after"] or 0.0 for line in lines), default=0.0)
    if scheduled is not None:
        attributes["gen_ai.latency.time_in_queue"] = scheduled - submitted
    if scheduled is not None and first is not None:
        attributes["gen_ai.latency.time_to_first_token"] = first
        attributes["gen_ai.latency.time_in_model_prefill"] = first - scheduled
        attributes["gen_ai.latency.time_in_model_decode"] = last - first
        attributes["gen_ai.latency.time_in_model_inference"] = last - scheduled
    return attributes


def _earliest(moments: Iterable[float | None]) -> float | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _phase_attributes(name: str, line: ChoiceTimeline) -> dict[str, Value]:
    if name == "prefill":
        return {
            "gen_ai.usage.prompt_tokens": line["prompt_tokens"],
            "gen_ai.usage.cache_read.input_tokens": line["cached_tokens"],
        }
    if name == "decode":
        return {
            "gen_ai.usage.completion_tokens": line["generated_tokens"],
            "gen_ai.response.finish_reasons": [line["state"]],
        }
    return {}

"""A live server's spans, as an OTLP receiver decodes them by the official messages."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import time

import httpx2
import pytest
from otlp_collector import Collector

TRACE, PARENT = "ab" * 16, "cd" * 8
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=value"}
SECRET = "One cold day a little fox"
SERVER, INTERNAL = 2, 1
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def collector():
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def server(launch, collector):
    server = launch("--otlp-traces-endpoint", collector.url, "--max-batch-size", "4", env=SOON)
    server.wait_ready()
    return server


def complete(server, request_id: str, headers=None, **fields) -> httpx2.Response:
    asked = {"model": "quire-demo", "prompt": SECRET, "max_tokens": 6, **fields}
    return server.http.post(
        "/v1/completions", json=asked, headers={"x-request-id": request_id, **(headers or {})}
    )


def test_a_request_is_a_span_with_its_phases_under_the_caller_s_span(server, collector):
    before = time.time()
    reply = complete(server, "parented", SAMPLED, temperature=0.5, top_p=0.9, seed=3).json()
    after = time.time()

    span = collector.of_request("parented")
    assert (span.name, span.kind, span.is_error) == ("POST /v1/completions", SERVER, False)
    assert (span.trace_id, span.parent_id, span.trace_state) == (TRACE, PARENT, "vendor=value")
    assert before - 0.01 <= span.start < span.end <= after + 0.01
    told = span.attributes
    usage, choice = reply["usage"], reply["choices"][0]
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "gen_ai.provider.name": "quire",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "quire-demo",
        "gen_ai.response.model": "quire-demo",
        "gen_ai.request.n": 1,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 3,
        "gen_ai.usage.prompt_tokens": usage["prompt_tokens"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.completion_tokens": usage["completion_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.response.finish_reasons": [choice["finish_reason"]],
        "gen_ai.usage.num_sequences": 1,
    }
    assert expected.items() <= told.items()
    queue, prefill, decode = collector.children_of(span)
    assert [child.name for child in (queue, prefill, decode)] == ["queue", "prefill", "decode"]
    assert {child.kind for child in (queue, prefill, decode)} == {INTERNAL}
    # Each phase ends where the next begins, inside the request.
    assert span.start <= queue.start <= queue.end == prefill.start
    assert prefill.end == decode.start <= decode.end <= span.end
    latency = {name.rpartition(".")[2]: value for name, value in told.items() if "latency" in name}
    assert latency["e2e"] == pytest.approx(span.end - span.start, abs=1e-5)
    assert latency["time_to_first_token"] == pytest.approx(decode.start - span.start, abs=1e-5)
    assert latency["time_in_queue"] == pytest.approx(queue.end - queue.start, abs=1e-5)
    assert latency["time_in_model_prefill"] == pytest.approx(prefill.end - prefill.start, abs=1e-5)
    assert (
        0 <= latency["time_in_model_decode"] <= latency["time_in_model_inference"] <= latency["e2e"]
    )
    assert span.resource["service.name"] == "quire"
    line = next(line for line in server.log.splitlines() if "request_id=parented" in line)
    assert f"trace_id={TRACE}" in line


def test_choices_have_phases_of_their_own_and_prompts_count_once(server, collector):
    reply = complete(server, "many", n=3, prompt=[SECRET, "Two"]).json()
    span = collector.of_request("many")
    children = collector.children_of(span)
    assert len(children) == 18
    assert {child.attributes["quire.choice"] for child in children} == set(range(6))
    assert span.parent_id == "" and len(span.trace_id) == 32
    assert span.attributes["gen_ai.usage.input_tokens"] == reply["usage"]["prompt_tokens"]
    assert span.attributes["gen_ai.usage.output_tokens"] == reply["usage"]["completion_tokens"]
    assert len(span.attributes["gen_ai.response.finish_reasons"]) == 6


async def test_a_client_that_leaves_ends_its_spans(server, collector, connect):
    stream = await connect(server).completions.create(
        model="quire-demo",
        prompt=SECRET,
        max_tokens=1500,
        stream=True,
        extra_body={"ignore_eos": True},
        extra_headers={"x-request-id": "leaver"},
    )
    await anext(aiter(stream))
    await stream.close()

    span = await asyncio.to_thread(collector.of_request, "leaver")
    assert span.attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert span.attributes["http.response.status_code"] == 499
    assert not span.is_error
    assert 0 < span.attributes["gen_ai.usage.output_tokens"] < 1500
    assert [child.name for child in collector.children_of(span)] == ["queue", "prefill", "decode"]


def test_errors_of_callers_are_no_errors_of_the_span(server, collector):
    assert complete(server, "refused", max_tokens=-1).status_code == 400
    server.http.get(f"/{SECRET}", headers={"x-request-id": "lost"})
    server.http.get("/livez", headers={"x-request-id": "probe"})
    server.http.request("PROPFIND", "/v1/models", headers={"x-request-id": "odd"})
    complete(server, "last")

    refused, lost = collector.of_request("refused"), collector.of_request("lost")
    assert (refused.name, refused.attributes["http.response.status_code"]) == (
        "POST /v1/completions",
        400,
    )
    assert (lost.name, lost.attributes["http.response.status_code"]) == ("GET", 404)
    assert not refused.is_error and not lost.is_error
    odd = collector.of_request("odd")
    assert (odd.name.split(" ")[0], odd.attributes["http.request.method"]) == ("HTTP", "_OTHER")
    collector.of_request("last")
    assert not any("probe" in span.attributes.values() for span in collector.spans)


def test_what_the_engine_fails_is_an_error(server, collector):
    word = server.http.post("/detokenize", json={"tokens": [300]}).json()["prompt"]
    reply = complete(server, "failing", allowed_token_ids=[300], bad_words=[word])
    assert reply.status_code == 400
    span = collector.of_request("failing")
    assert span.is_error
    assert span.attributes["error.type"] == "constraints_conflict"
    assert span.attributes["gen_ai.response.finish_reasons"] == ["error"]


def test_the_caller_decides_whether_its_request_is_traced(server, collector):
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    zero = {"traceparent": f"00-{'0' * 32}-{PARENT}-00"}
    asked = {"unsampled": unsampled, "zero": zero, "no-parent": {"traceparent": "none"}, "none": {}}
    for name, headers in asked.items():
        complete(server, name, headers)

    collector.of_request("none")
    found = {
        name: [s for s in collector.spans if s.attributes.get("gen_ai.request.id") == name]
        for name in asked
    }
    assert [len(spans) for spans in found.values()] == [0, 1, 1, 1]
    for (span,) in [*found.values()][1:]:
        assert span.trace_id != TRACE and span.parent_id == ""
    # Whoever looks for a request of a trace finds its line, sent or not.
    line = next(line for line in server.log.splitlines() if "request_id=unsampled" in line)
    assert f"trace_id={TRACE}" in line


async def test_a_resumed_request_is_one_span_that_says_so(server, collector, connect):
    stream = await connect(server).completions.create(
        model="quire-demo",
        prompt=SECRET,
        max_tokens=40,
        stream=True,
        extra_body={"ignore_eos": True},
        extra_headers={"x-request-id": "survivor"},
    )
    chunks = aiter(stream)
    await anext(chunks)
    os.kill(server.worker().pid, signal.SIGKILL)
    async for _ in chunks:
        pass

    span = await asyncio.to_thread(collector.of_request, "survivor")
    assert not span.is_error
    assert span.attributes["gen_ai.usage.output_tokens"] == 40
    assert {child.attributes["quire.resumes"] for child in collector.children_of(span)} == {1}
    assert {child.attributes["quire.worker_epoch"] for child in collector.children_of(span)} == {2}


def test_no_text_of_a_prompt_or_path_is_in_what_is_sent(collector):
    assert collector.bodies
    for body in collector.bodies:
        for word in (b"cold", b"PROPFIND", b"little", b"fox"):
            assert word not in body


def test_the_last_spans_are_sent_at_shutdown(launch):
    collector = Collector()
    with contextlib.closing(collector):
        server = launch(
            *("--otlp-traces-endpoint", f"{collector.url}/v1/traces"),
            env={
                "OTEL_RESOURCE_ATTRIBUTES": "service.name=mine,deployment=test",
                "OTEL_EXPORTER_OTLP_HEADERS": "x-token=secret",
            },
        )
        # Before the model is loaded: a refusal is a span like any other.
        assert complete(server, "early").status_code == 503
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 8
        span = collector.of_request("early")
        assert span.is_error and span.attributes["error.type"] == "503"
        assert span.resource["service.name"] == "mine"
        assert span.resource["deployment"] == "test"
        assert collector.headers[0]["x-token"] == "secret"


@pytest.fixture(params=["refuses", "hangs"])
def dead_endpoint(request):
    """A port where nobody listens, or one that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "hangs":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_dead_collector_costs_spans_and_nothing_else(launch, dead_endpoint):
    server = launch("--otlp-traces-endpoint", dead_endpoint, env=SOON)
    times: list[float] = []

    async def ask(client: httpx2.AsyncClient) -> None:
        began = time.monotonic()
        assert (await client.get("/version")).status_code == 200
        times.append(time.monotonic() - began)

    began = time.monotonic()
    failed = None
    async with httpx2.AsyncClient(base_url=server.url, timeout=10.0) as client:
        # Requests go on while batches of spans are tried, and given up on.
        while failed is None or time.monotonic() - began < 2:
            assert time.monotonic() - began < 10, server.log
            await asyncio.gather(*(ask(client) for _ in range(8)))
            text = (await client.get("/metrics")).text
            failed = re.search(r'quire_trace_spans_total\{.*outcome="failed"\} [1-9]', text)

    assert sorted(times)[len(times) // 2] < 0.5
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 8
    assert server.log.count("opentelemetry") == 1, server.log

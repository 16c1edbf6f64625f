"""The numbers are vLLM's by name, label and bucket, and they add up."""

import os
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire.pipelines.core.messages import EngineStats, Ready, StepOutput
from quire.server.metrics import Metrics
from quire.server.request_metrics import RequestTimes

# vLLM 0.33, every family of its V1 engine that Quire has something to say about.
VLLM_GAUGES = {
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "kv_cache_usage_perc",
    "cache_config_info",
}
VLLM_COUNTERS = {
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "prompt_tokens_by_source",
    "prompt_tokens_cached",
    "prompt_tokens_cached_by_source",
    "corrupted_requests",
    "generation_tokens",
    "request_success",
    "admission_rejections",
    "tool_call_parser_invocations",
}
VLLM_HISTOGRAMS = {
    "time_to_first_token_seconds": ("0.001", "2560.0", 22),
    "inter_token_latency_seconds": ("0.01", "80.0", 19),
    "request_time_per_output_token_seconds": ("0.01", "80.0", 19),
    "e2e_request_latency_seconds": ("0.3", "7680.0", 21),
    "request_queue_time_seconds": ("0.3", "7680.0", 21),
    "request_inference_time_seconds": ("0.3", "7680.0", 21),
    "request_prefill_time_seconds": ("0.3", "7680.0", 21),
    "request_decode_time_seconds": ("0.3", "7680.0", 21),
    "iteration_tokens_total": ("1.0", "16384.0", 13),
    "request_params_n": ("1.0", "20.0", 5),
    "request_num_preemptions": ("1.0", "20.0", 7),
    "request_prompt_tokens": ("1.0", "500000.0", 18),
    "request_generation_tokens": ("1.0", "500000.0", 18),
    "request_max_num_generation_tokens": ("1.0", "500000.0", 18),
    "request_params_max_tokens": ("1.0", "500000.0", 18),
    "request_prefill_kv_computed_tokens": ("1.0", "500000.0", 18),
}
QUIRE = {
    "ready",
    "startup_seconds",
    "worker_restarts",
    "streams_resumed",
    "stale_frames_dropped",
    "client_disconnects",
    "slow_readers_aborted",
    "deadlines_exceeded",
    "trace_spans",
    "steps",
    "step_seconds",
    "computed_tokens",
    "kv_pages",
    "memory_plan_bytes",
    "engine_info",
    "build_info",
}


def families(metrics: Metrics) -> dict[str, Any]:
    text = metrics.render()[0].decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return float(found[0])


def ready(epoch: int = 1, pid: int = 0) -> Ready:
    return Ready(
        epoch=epoch,
        pid=pid,
        device="cpu",
        dtype="bfloat16",
        max_length=512,
        num_pages=100,
        page_size=32,
        max_batch_size=8,
        max_batch_input_tokens=2048,
        memory_plan=[("weights", 1000), ("kv cache", 3200)],
        memory_table="",
        kv_cache_tokens=3200,
        kv_cache_concurrency=6.25,
    )


def step(epoch: int = 1, input_tokens: int = 0, **stats: Any) -> StepOutput:
    empty = np.empty(0).tobytes()
    return StepOutput(
        epoch, empty, empty, empty, empty, empty, empty, {}, {}, input_tokens, EngineStats(**stats)
    )


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("demo")


def test_every_series_exists_before_the_first_request(metrics: Metrics) -> None:
    found = families(metrics)
    for name in VLLM_GAUGES:
        family = found[f"vllm:{name}"]
        assert family.type == "gauge" and family.samples, name
    for name in VLLM_COUNTERS:
        family = found[f"vllm:{name}"]
        assert family.type == "counter" and family.samples, name
    for name in VLLM_HISTOGRAMS:
        assert found[f"vllm:{name}"].type == "histogram", name
    for name in QUIRE - {"memory_plan_bytes"}:
        assert found[f"quire_{name}"].samples, name
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"} <= set(
        found
    )


def test_labels_are_vllm_s(metrics: Metrics) -> None:
    for name, family in families(metrics).items():
        if not name.startswith(("vllm:", "quire_")) or name.endswith("_created"):
            continue
        for sample in family.samples:
            base = {"model_name": "demo", "engine": "0"}
            if name in ("vllm:admission_rejections", "vllm:tool_call_parser_invocations"):
                base = {"model_name": "demo"}
                assert "engine" not in sample.labels
            assert base.items() <= sample.labels.items(), sample
    text = metrics.render()[0].decode()
    for reason in ("stop", "length", "abort", "error"):
        assert f'finished_reason="{reason}"' in text
    assert 'reason="max_num_queued_reqs"' in text


@pytest.mark.parametrize("name", sorted(VLLM_HISTOGRAMS))
def test_buckets_are_vllm_s(metrics: Metrics, name: str) -> None:
    first, last, count = VLLM_HISTOGRAMS[name]
    bounds = [
        sample.labels["le"]
        for sample in families(metrics)[f"vllm:{name}"].samples
        if sample.name.endswith("_bucket")
    ]
    assert (bounds[0], bounds[-2], bounds[-1], len(bounds) - 1) == (first, last, "+Inf", count)


def test_two_instances_share_nothing() -> None:
    one, other = Metrics("one"), Metrics("other")
    one.on_worker_restart()
    assert value(one, "quire_worker_restarts_total") == 1
    assert value(other, "quire_worker_restarts_total") == 0


def test_token_sums_are_exact_for_ten_requests_of_ten_tokens(metrics: Metrics) -> None:
    for _ in range(10):
        metrics.requests.on_prompt(7, 4)
        metrics.requests.on_first_token(0.2)
        for _ in range(9):
            metrics.requests.on_inter_token(0.1)
        metrics.requests.on_request_end(
            RequestTimes(
                arrival=100.0,
                queue_seconds=0.05,
                first_token_at=100.2,
                last_token_at=101.1,
                ended_at=101.2,
                prompt_tokens=7,
                cached_tokens=4,
                generation_tokens=10,
                finish_reason="length",
                max_tokens=10,
                preemptions=2,
            )
        )
        metrics.requests.on_choices_end(1, 10)
    for name, expected in {
        "vllm:prompt_tokens_total": 70,
        "vllm:prompt_tokens_cached_total": 40,
        "vllm:generation_tokens_total": 100,
        "vllm:time_to_first_token_seconds_sum": 2.0,
        "vllm:inter_token_latency_seconds_count": 90,
        "vllm:e2e_request_latency_seconds_sum": 12.0,
        "vllm:request_queue_time_seconds_sum": 0.5,
        "vllm:request_prefill_time_seconds_sum": 1.5,
        "vllm:request_decode_time_seconds_sum": 9.0,
        "vllm:request_inference_time_seconds_sum": 10.5,
        "vllm:request_time_per_output_token_seconds_sum": 1.0,
        "vllm:request_prompt_tokens_sum": 70,
        "vllm:request_generation_tokens_sum": 100,
        "vllm:request_prefill_kv_computed_tokens_sum": 30,
        "vllm:request_params_max_tokens_sum": 100,
        "vllm:request_params_n_sum": 10,
        "vllm:request_max_num_generation_tokens_sum": 100,
        "vllm:request_num_preemptions_sum": 20,
    }.items():
        assert value(metrics, name) == pytest.approx(expected), name
    assert value(metrics, "vllm:request_success_total", finished_reason="length") == 10
    assert value(metrics, "vllm:prompt_tokens_cached_by_source_total", source="device") == 40
    by_source = ("vllm:prompt_tokens_by_source_total",)
    assert value(metrics, *by_source, source="local_compute") == 30
    assert value(metrics, *by_source, source="local_cache_hit") == 40


def test_a_request_that_never_ran_moves_no_token_or_phase(metrics: Metrics) -> None:
    metrics.requests.on_request_end(
        RequestTimes(
            arrival=1.0,
            queue_seconds=None,
            first_token_at=None,
            last_token_at=None,
            ended_at=2.0,
            prompt_tokens=7,
            cached_tokens=0,
            generation_tokens=0,
            finish_reason="abort",
            max_tokens=None,
        )
    )
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 1
    assert value(metrics, "vllm:e2e_request_latency_seconds_sum") == 1.0
    for name in (
        "vllm:prompt_tokens_total",
        "vllm:request_queue_time_seconds_count",
        "vllm:request_prefill_time_seconds_count",
        "vllm:request_generation_tokens_count",
        "vllm:request_params_max_tokens_count",
    ):
        assert value(metrics, name) == 0, name


def test_one_token_gives_no_time_per_output_token(metrics: Metrics) -> None:
    metrics.requests.on_request_end(
        RequestTimes(
            arrival=1.0,
            queue_seconds=0.0,
            first_token_at=1.5,
            last_token_at=1.5,
            ended_at=1.5,
            prompt_tokens=1,
            cached_tokens=0,
            generation_tokens=1,
            finish_reason="stop",
            max_tokens=None,
        )
    )
    assert value(metrics, "vllm:request_time_per_output_token_seconds_count") == 0
    assert value(metrics, "vllm:request_decode_time_seconds_count") == 1


def test_steps_set_gauges_and_add_what_counters_gained(metrics: Metrics) -> None:
    metrics.on_ready(ready())
    assert value(metrics, "quire_kv_pages", state="free") == 100
    metrics.on_step(step(input_tokens=12, running=2, waiting=3, used_pages=25, cached_pages=5,
                         total_pages=100, steps=1, step_seconds=0.5, prefill_tokens=10,
                         decode_tokens=2, prefix_query_tokens=10, prefix_hit_tokens=4,
                         preemptions=1, kv_usage=0.25))  # fmt: skip
    metrics.on_step(step(input_tokens=2, running=2, used_pages=26, cached_pages=5, total_pages=100,
                         steps=2, step_seconds=0.75, prefill_tokens=10, decode_tokens=4,
                         prefix_query_tokens=10, prefix_hit_tokens=4, preemptions=1,
                         kv_usage=0.3))  # fmt: skip
    for name, expected in {
        "vllm:num_requests_running": 2,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0.3,
        "vllm:iteration_tokens_total_sum": 14,
        "vllm:iteration_tokens_total_count": 2,
        "vllm:prefix_cache_queries_total": 10,
        "vllm:prefix_cache_hits_total": 4,
        "vllm:num_preemptions_total": 1,
        "quire_steps_total": 2,
        "quire_step_seconds_total": 0.75,
    }.items():
        assert value(metrics, name) == pytest.approx(expected), name
    assert value(metrics, "quire_computed_tokens_total", phase="decode") == 4
    assert value(metrics, "quire_computed_tokens_total", phase="prefill") == 10
    pages = {
        state: value(metrics, "quire_kv_pages", state=state) for state in ("used", "cached", "free")
    }
    assert pages == {"used": 26, "cached": 5, "free": 69}


def test_counters_go_on_over_a_worker_s_death(metrics: Metrics) -> None:
    metrics.on_ready(ready(1))
    metrics.on_step(step(1, steps=50, decode_tokens=50, running=4, used_pages=9, kv_usage=0.09))
    metrics.on_worker_restart()
    for name in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
        assert value(metrics, name) == 0
    metrics.on_ready(ready(2))
    metrics.on_step(step(1, steps=51, running=4))  # of the dead worker: says nothing any more
    metrics.on_step(step(2, steps=3, decode_tokens=2, running=1, total_pages=100))
    assert value(metrics, "quire_steps_total") == 53
    assert value(metrics, "quire_computed_tokens_total", phase="decode") == 52
    assert value(metrics, "vllm:num_requests_running") == 1
    assert value(metrics, "quire_worker_restarts_total") == 1


def test_a_new_worker_replaces_the_info_of_the_old(metrics: Metrics) -> None:
    metrics.on_ready(ready(1))
    metrics.on_ready(ready(2))
    assert (
        value(
            metrics,
            "vllm:cache_config_info",
            block_size="32",
            num_gpu_blocks="100",
            cache_dtype="bfloat16",
            kv_cache_size_tokens="3200",
            kv_cache_max_concurrency="6.25",
        )
        == 1
    )
    assert value(metrics, "quire_engine_info", device="cpu", max_length="512") == 1
    assert value(metrics, "quire_memory_plan_bytes", part="weights") == 1000


def test_the_worker_s_process_is_measured_while_it_lives(metrics: Metrics) -> None:
    assert not families(metrics).get("quire_worker_process_cpu_seconds")
    metrics.on_ready(ready(pid=os.getpid()))
    assert value(metrics, "quire_worker_process_resident_memory_bytes") > 1_000_000
    metrics.on_worker_restart()
    assert "quire_worker_process_resident_memory_bytes" not in families(metrics)


def test_what_went_wrong_is_counted(metrics: Metrics) -> None:
    metrics.on_rejection("max_num_queued_reqs")
    metrics.on_resumed(3)
    metrics.on_stale_frame()
    metrics.on_disconnect()
    metrics.on_slow_reader()
    assert value(metrics, "vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
    assert value(metrics, "quire_streams_resumed_total") == 3
    assert value(metrics, "quire_stale_frames_dropped_total") == 1
    assert value(metrics, "quire_client_disconnects_total") == 1
    assert value(metrics, "quire_slow_readers_aborted_total") == 1

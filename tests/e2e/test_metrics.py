"""After random traffic the sums are what clients were told, to the token, and gauges are at zero."""

import asyncio
import collections
import os
import random
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

NUM_REQUESTS = 30
LOST = {"allowed_token_ids": [300]}
"""With its own word forbidden it leaves nothing to sample: the worker fails the row."""


@dataclass
class Told:
    """What the clients were told."""

    prompt_tokens: int = 0
    """Once per choice."""
    completion_tokens: int = 0
    ends: collections.Counter[str] = field(default_factory=collections.Counter)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    prompts: int = 0
    choices: int = 0
    in_full: set[str] = field(default_factory=set)
    """Ids of the requests whose usage tells all that was generated for them."""


@pytest.fixture(scope="module")
def server(launch):
    options = ("--max-batch-size", "6", "--admin-port", "0", "--maxserve-metrics")
    server = launch(*options)
    server.wait_ready()
    return server


@pytest.fixture(scope="module")
def admin(server):
    url = re.search(r"admin on (http://127\.0\.0\.1:\d+)", server.log)
    with httpx2.Client(base_url=url[1], timeout=20.0) as client:
        yield client


def scrape(server) -> dict[tuple[str, frozenset], float]:
    text = server.http.get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found, name: str, **labels: str) -> float:
    values = [v for (n, own), v in found.items() if n == name and labels.items() <= set(own)]
    assert values, name
    return sum(values)


async def whole(client, told: Told, request_id: str, draw: random.Random) -> None:
    """One request, read to its end, streamed or not."""
    prompts = ["One cold day"] * 3 + ["The little fox ran " * draw.randint(1, 40)]
    prompts = draw.sample(prompts, draw.randint(1, 3))
    n = draw.choice([1, 1, 2, 3])
    asked: dict[str, Any] = {
        "model": "quire-demo",
        "prompt": prompts,
        "n": n,
        "max_tokens": draw.randint(1, 30),
        "extra_body": {"ignore_eos": draw.random() < 0.5},
        "extra_headers": {"x-request-id": request_id},
    }
    if draw.random() < 0.5:
        stream = await client.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        usage = chunks[-1].usage
        ends = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    else:
        reply = await client.completions.create(**asked)
        usage, ends = reply.usage, [choice.finish_reason for choice in reply.choices]
    told.statuses["200"] += 1
    told.prompt_tokens += usage.prompt_tokens * n
    told.completion_tokens += usage.completion_tokens
    told.ends.update(ends)
    told.prompts += len(prompts)
    told.choices += len(prompts) * n
    told.in_full.add(request_id)


async def stopped(client, told: Told, request_id: str, draw: random.Random) -> None:
    """Ends at a stop string: more may have been generated than is told."""
    reply = await client.completions.create(
        model="quire-demo",
        prompt="The little fox",
        stop=[" "],
        max_tokens=40,
        temperature=draw.choice([0.0, 1.0]),
        extra_headers={"x-request-id": request_id},
    )
    told.statuses["200"] += 1
    told.ends.update(choice.finish_reason for choice in reply.choices)
    told.prompts += 1
    told.choices += 1


async def left(client, told: Told, request_id: str, draw: random.Random) -> None:
    """The client leaves in mid-stream."""
    stream = await client.completions.create(
        model="quire-demo",
        prompt="One cold day",
        n=2,
        max_tokens=1000,
        stream=True,
        extra_body={"ignore_eos": True},
        extra_headers={"x-request-id": request_id},
    )
    for _ in range(draw.randint(1, 12)):
        await anext(aiter(stream))
    await stream.close()
    told.statuses["499"] += 1
    told.ends["abort"] += 2
    told.prompts += 1
    told.choices += 2


async def late(client, told: Told, request_id: str, draw: random.Random) -> None:
    """Its time is up."""
    with pytest.raises(openai.APIError, match="limit of") as caught:
        stream = await client.completions.create(
            model="quire-demo",
            prompt="One cold day",
            max_tokens=1800,
            stream=True,
            extra_body={"ignore_eos": True, "timeout": draw.uniform(1.0, 2.0)},
            extra_headers={"x-request-id": request_id},
        )
        async for _ in stream:
            pass
    # It may pass before the first token.
    told.statuses["504" if isinstance(caught.value, openai.APIStatusError) else "200"] += 1
    told.ends["abort"] += 1
    told.prompts += 1
    told.choices += 1


async def refused(client, told: Told, request_id: str, draw: random.Random) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(
            model="quire-demo", prompt="x", max_tokens=-draw.randint(1, 9)
        )
    told.statuses["400"] += 1


async def failed(client, told: Told, request_id: str, draw: random.Random) -> None:
    """The worker fails its row."""
    with pytest.raises(openai.BadRequestError, match="leave no token"):
        await client.completions.create(
            model="quire-demo",
            prompt="One cold",
            extra_body=LOST,
            extra_headers={"x-request-id": request_id},
        )
    told.statuses["400"] += 1
    told.ends["error"] += 1
    told.prompts += 1
    told.choices += 1


async def play(server, client) -> Told:
    """All kinds of requests side by side, and one death of the worker in the middle."""
    word = server.http.post("/detokenize", json={"tokens": LOST["allowed_token_ids"]}).json()
    LOST["bad_words"] = [word["prompt"]]
    told, draw = Told(), random.Random(11)
    kinds = [whole] * 5 + [stopped, left, refused, failed]
    acts = [late] + [kinds[at % len(kinds)] for at in range(NUM_REQUESTS - 1)]
    draw.shuffle(acts)
    gate = asyncio.Semaphore(12)

    async def act(number: int, kind) -> None:
        async with gate:
            await kind(client, told, f"act-{number}", random.Random(number))

    playing = asyncio.gather(*(act(number, kind) for number, kind in enumerate(acts)))
    while await asyncio.to_thread(server.metric, "vllm:generation_tokens_total") < 60:
        await asyncio.sleep(0.01)
    os.kill(server.worker().pid, signal.SIGKILL)
    await playing
    return told


async def test_the_sums_are_what_clients_were_told(server, admin, connect):
    told = await play(server, connect(server))
    await asyncio.to_thread(server.wait_idle)

    found = scrape(server)
    lines = [
        (request["id"] in told.in_full, line)
        for request in admin.get("/v1/requests").json()["data"]
        for line in request["choices"]
    ]
    assert len(lines) == told.choices
    partial = [line for in_full, line in lines if not in_full]
    begun = [line for line in partial if line["first_token_after"] is not None]
    assert begun and sum(line["resumes"] for _, line in lines) > 0
    generated = told.completion_tokens + sum(line["generated_tokens"] for line in partial)
    prompt = told.prompt_tokens + sum(line["prompt_tokens"] for line in begun)
    cached = sum(line["cached_tokens"] for _, line in lines if line["first_token_after"])
    first_tokens = sum(line["first_token_after"] is not None for _, line in lines)

    for name, expected in {
        "vllm:generation_tokens_total": generated,
        "vllm:request_generation_tokens_sum": generated,
        "vllm:prompt_tokens_total": prompt,
        "vllm:request_prompt_tokens_sum": prompt,
        "vllm:prompt_tokens_cached_total": cached,
        "vllm:prompt_tokens_by_source_total": prompt,
        "vllm:request_prefill_kv_computed_tokens_sum": prompt - cached,
        "vllm:time_to_first_token_seconds_count": first_tokens,
        "vllm:inter_token_latency_seconds_count": generated - first_tokens,
        "vllm:request_queue_time_seconds_count": first_tokens + told.ends["error"],
        "vllm:e2e_request_latency_seconds_count": told.choices,
        "vllm:request_num_preemptions_count": told.choices,
        "vllm:request_params_n_count": told.prompts,
        "vllm:request_params_n_sum": told.choices,
        "vllm:request_max_num_generation_tokens_count": told.prompts,
        "vllm:request_success_total": told.choices,
        "vllm:corrupted_requests_total": 0,
        "quire_worker_restarts_total": 1,
        "quire_deadlines_exceeded_total": 1,
        "quire_client_disconnects_total": told.statuses["499"],
        "maxserve_num_input_tokens_total": prompt,
        "maxserve_num_output_tokens_total": generated,
    }.items():
        assert total(found, name) == expected, name
    ends = {
        reason: total(found, "vllm:request_success_total", finished_reason=reason)
        for reason in ("stop", "length", "abort", "error")
    }
    assert ends == dict(told.ends)
    statuses = {
        status: total(
            found, "http_requests_total", handler="/v1/completions", method="POST", status=status
        )
        for status in told.statuses
    }
    assert statuses == dict(told.statuses)


async def test_gauges_show_what_waits_for_a_worker_and_return_to_zero(server, connect):
    client = connect(server)
    # The worker of the test before may have died as its last act.
    await asyncio.to_thread(server.wait_ready)
    worker = server.worker()
    worker.suspend()
    asking = [
        asyncio.create_task(
            client.completions.create(model="quire-demo", prompt="One cold day", max_tokens=4)
        )
        for _ in range(9)
    ]

    async def until(**wanted: float) -> None:
        for _ in range(500):
            found = scrape(server)
            name = "vllm:num_requests_waiting_by_reason"
            if all(total(found, name, reason=reason) == n for reason, n in wanted.items()):
                assert total(found, "vllm:num_requests_waiting") == sum(wanted.values())
                assert total(found, "maxserve_num_requests_running") == sum(wanted.values())
                return
            await asyncio.sleep(0.01)
        raise AssertionError(found)

    # Nobody told them from the worker's side: it is asleep, and then gone.
    await until(capacity=9, deferred=0)
    worker.kill()
    await until(capacity=0, deferred=9)
    for task in asking[:3]:
        task.cancel()
    await until(capacity=0, deferred=6)

    await asyncio.gather(*asking[3:])
    await asyncio.to_thread(server.wait_idle)
    found = scrape(server)
    gauges = ("vllm:num_requests_waiting_by_reason", "maxserve_num_requests_running")
    assert [total(found, name) for name in gauges] == [0, 0]
    assert total(found, "quire_kv_pages", state="used") == 0


def test_label_values_are_bounded(server):
    before = {labels for _, labels in scrape(server)}
    for number in range(20):
        server.http.get(f"/path-{number}")
        server.http.request(f"METHOD{number}", "/v1/models")
        server.http.post("/v1/completions", json={"model": f"m{number}", "prompt": "x"})
    added = {labels for _, labels in scrape(server)} - before
    assert len({labels for labels in added if "le" not in dict(labels)}) < 10


def test_promtool_reads_what_the_server_says(server):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text = server.http.get("/metrics").text
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Names that are vLLM's or MAX's, and prometheus_client's _created, are as they are.
    complaints = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if not re.match(r"(vllm:|maxserve_)", line) and "_created" not in line
    ]
    assert complaints == []

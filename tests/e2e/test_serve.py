"""The promises of `quire serve` with the demo model, through the official client."""

import asyncio
import time
from pathlib import Path

import openai
import psutil


async def test_streamed_chat_equals_the_unstreamed_reply(demo, connect):
    client = connect(demo)
    messages = [{"role": "user", "content": "Count to five."}]
    ask = {"model": "quire-demo", "messages": messages, "temperature": 0, "max_tokens": 60}

    reply = await client.chat.completions.create(**ask)
    pieces = [
        chunk.choices[0].delta.content or ""
        async for chunk in await client.chat.completions.create(**ask, stream=True)
    ]

    assert reply.choices[0].finish_reason == "stop"
    assert "".join(pieces) == reply.choices[0].message.content
    assert "1, 2, 3, 4, 5" in "".join(pieces).lower()
    assert len(pieces) > 3


async def test_a_second_identical_prompt_hits_the_prefix_cache(demo, connect):
    client = connect(demo)
    prompt = "Once upon a time there was a little fox who lived near the river. " * 6

    first = await client.completions.create(model="quire-demo", prompt=prompt, max_tokens=4)
    second = await client.completions.create(model="quire-demo", prompt=prompt, max_tokens=4)

    assert first.usage.prompt_tokens == second.usage.prompt_tokens > 64
    assert second.usage.prompt_tokens_details.cached_tokens >= 64
    assert second.usage.prompt_tokens_details.cached_tokens % 32 == 0


async def test_seeded_sampling_repeats_and_choices_differ(demo, connect):
    client = connect(demo)
    ask = {"model": "quire-demo", "prompt": "One day", "max_tokens": 24, "temperature": 1.2}

    one = await client.completions.create(**ask, seed=7, n=3)
    two = await client.completions.create(**ask, seed=7, n=3)
    other = await client.completions.create(**ask, seed=8, n=3)

    texts = [choice.text for choice in one.choices]
    assert texts == [choice.text for choice in two.choices]
    assert len(set(texts)) == 3
    assert texts != [choice.text for choice in other.choices]


async def test_models_are_listed_and_unknown_ones_refused(demo, connect):
    client = connect(demo)

    listed = [model.id async for model in client.models.list()]
    try:
        await client.completions.create(model="nope", prompt="x")
    except openai.NotFoundError as error:
        refused = error

    assert listed == ["quire-demo"]
    assert refused.code == "model_not_found"
    assert refused.param == "model"


def test_ready_within_five_seconds_with_a_small_api_process(launch):
    # On a busy machine one start may take longer; not each of three.
    server = launch()
    seconds = [server.wait_ready()]
    while seconds[-1] > 5.0 and len(seconds) < 3:
        server.stop()
        server = launch()
        seconds.append(server.wait_ready())
    api = psutil.Process(server.process.pid)
    maps = Path(f"/proc/{api.pid}/maps").read_text()

    assert min(seconds) <= 5.0
    assert api.memory_info().rss <= 150 * 1024**2
    assert "torch" not in maps
    assert server.stop() == 0


def test_idle_processes_use_no_cpu(demo):
    demo.wait_idle()
    processes = [psutil.Process(demo.process.pid), demo.worker()]
    before = sum(sum(process.cpu_times()[:2]) for process in processes)

    time.sleep(5.0)
    spent = sum(sum(process.cpu_times()[:2]) for process in processes) - before

    assert spent / 5.0 <= 0.01


def test_process_titles_name_the_roles(demo):
    assert psutil.Process(demo.process.pid).cmdline()[0].startswith("quire: api")
    assert demo.worker().cmdline()[0].startswith("quire: worker")


def test_only_the_api_port_listens(demo):
    pids = [demo.process.pid, demo.worker().pid]

    listening = [
        connection.laddr.port
        for pid in pids
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]

    assert listening == [int(demo.url.rsplit(":", 1)[1])]


def test_the_worker_dies_with_the_api_process(launch):
    server = launch()
    server.wait_ready()
    worker = server.worker()

    server.process.kill()
    server.process.wait()

    psutil.wait_procs([worker], timeout=20)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


async def test_sigterm_finishes_running_streams_and_exits_zero(launch, connect):
    server = launch()
    server.wait_ready()
    stream = await connect(server).completions.create(
        model="quire-demo",
        prompt="One day",
        max_tokens=300,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    first = await anext(aiter(stream))

    server.process.terminate()
    rest = [chunk async for chunk in stream]

    assert first.choices[0].finish_reason is None
    assert rest[-1].choices[0].finish_reason == "length"
    assert await asyncio.to_thread(server.process.wait, 10) == 0

"""Same request, same tokens: alone, in a crowd, preempted, and across the worker's death."""

import asyncio
import os
import random
import signal
import time

import pytest

NUM_STREAMS = 64


def requests(count: int, seed: int, longest: int) -> list[dict]:
    """Varied completions: lengths, sampling, penalties, stops; all seeded."""
    draw = random.Random(seed)
    openings = ["One cold day,", "Question: what is", "Count from", "The little fox", '{"name":']
    made = []
    for index in range(count):
        prompt = " ".join(
            [draw.choice(openings)]
            + [draw.choice(["the", "a", "blue", "fox", "ran"]) for _ in range(draw.randint(0, 120))]
        )
        made.append(
            {
                "model": "quire-demo",
                "prompt": prompt,
                "max_tokens": draw.randint(longest // 3, longest),
                "temperature": draw.choice([0.0, 0.7, 1.3]),
                "top_p": draw.choice([1.0, 0.9]),
                "seed": index,
                "frequency_penalty": draw.choice([0.0, 0.5]),
                "extra_body": {
                    "ignore_eos": True,
                    "top_k": draw.choice([-1, 20]),
                    "repetition_penalty": draw.choice([1.0, 1.1]),
                },
            }
        )
    return made


async def read(client, request, leave_after=None) -> str:
    stream = await client.completions.create(**request, stream=True)
    text = ""
    seen = 0
    async for chunk in stream:
        text += chunk.choices[0].text
        seen += 1
        if leave_after is not None and seen >= leave_after:
            await stream.close()
            break
    return text


async def alone(client, made) -> list[str]:
    return [await read(client, request) for request in made]


async def test_64_streams_with_leavers_equal_the_same_requests_alone(demo, connect):
    client = connect(demo)
    made = requests(NUM_STREAMS, seed=1, longest=60)
    leavers = set(range(0, NUM_STREAMS, 5))

    together = await asyncio.gather(
        *(
            read(client, request, leave_after=3 if index in leavers else None)
            for index, request in enumerate(made)
        )
    )
    stayed = [index for index in range(NUM_STREAMS) if index not in leavers]
    expected = await alone(client, [made[index] for index in stayed])

    assert [together[index] for index in stayed] == expected
    demo.wait_idle()


async def test_int8_weights_and_activations_stream_the_same_together_and_alone(launch, connect):
    server = launch("--quantization", "w8a8")
    server.wait_ready()
    made = requests(16, seed=6, longest=60)

    together = await asyncio.gather(*(read(connect(server), request) for request in made))

    assert together == await alone(connect(server), made)
    server.wait_idle()


async def test_preemption_changes_nothing_when_pages_are_a_third_of_the_need(demo, launch, connect):
    small = launch("--kv-cache-pages", "64", "--page-size", "16", "--max-length", "512")
    small.wait_ready()
    made = requests(24, seed=2, longest=200)

    crowded = await asyncio.gather(*(read(connect(small), request) for request in made))
    expected = await alone(connect(demo), made)

    assert crowded == expected
    assert small.metric("vllm:num_preemptions_total") > 0
    small.wait_idle()


@pytest.mark.parametrize("kills", [1, 2])
async def test_kill_9_of_the_worker_loses_doubles_and_changes_nothing(demo, launch, kills, connect):
    victim = launch()
    victim.wait_ready()
    made = requests(16, seed=3 + kills, longest=400)
    expected = await asyncio.gather(*(read(connect(demo), request) for request in made))

    running = [asyncio.create_task(read(connect(victim), request)) for request in made]
    for _ in range(kills):
        await asyncio.sleep(0.4)
        restarts = victim.metric("quire_worker_restarts_total")
        os.kill((await asyncio.to_thread(victim.worker)).pid, signal.SIGKILL)
        await asyncio.to_thread(wait_for_restart, victim, restarts)
    survived = await asyncio.gather(*running)

    assert survived == expected
    assert victim.metric("quire_worker_restarts_total") == kills
    victim.wait_idle()


def wait_for_restart(server, restarts: float) -> None:
    deadline = time.monotonic() + 60
    while server.metric("quire_worker_restarts_total") == restarts:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.01)
    server.wait_ready(timeout=120)


async def test_idle_worker_death_is_invisible_to_the_next_request(launch, connect):
    server = launch()
    server.wait_ready()

    os.kill(server.worker().pid, signal.SIGKILL)
    reply = await connect(server).completions.create(
        model="quire-demo", prompt="One day", max_tokens=5
    )

    assert reply.usage.completion_tokens >= 1

"""What the supervisor does when the worker hangs, keeps dying, or left things behind."""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil

from quire.pipelines.hf import resolve_model


def run_directories(pid: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"quire-{pid}-*"))


async def test_a_hung_worker_is_replaced_and_its_stream_goes_on(demo, launch, connect):
    server = launch("--worker-timeout", "2")
    server.wait_ready()
    ask = {"model": "quire-demo", "prompt": "One day", "max_tokens": 300, "stream": True}
    ask |= {"temperature": 0, "extra_body": {"ignore_eos": True}}

    async def text(client, has_begun) -> str:
        pieces = []
        async for chunk in await client.completions.create(**ask):
            pieces.append(chunk.choices[0].text)
            has_begun.set()
        return "".join(pieces)

    expected = await text(connect(demo), asyncio.Event())
    has_begun = asyncio.Event()
    running = asyncio.create_task(text(connect(server), has_begun))
    await asyncio.wait_for(has_begun.wait(), 60)
    os.kill(server.worker().pid, signal.SIGSTOP)

    assert await running == expected
    assert server.metric("quire_worker_restarts_total") == 1
    assert "no progress" in server.log


def test_a_worker_that_keeps_dying_ends_the_daemon_with_code_5(launch):
    server = launch()
    server.wait_ready()
    killed = set()
    deadline = time.monotonic() + 60

    while server.process.poll() is None and time.monotonic() < deadline:
        for child in psutil.Process(server.process.pid).children():
            if child.pid not in killed:
                killed.add(child.pid)
                child.kill()
        time.sleep(0.02)

    assert server.process.wait(30) == 5
    assert "died 5 times in 60 s" in server.log
    assert not run_directories(server.process.pid)


def test_what_a_killed_daemon_left_is_swept_by_the_next(launch):
    first = launch()
    first.wait_ready()
    (left,) = run_directories(first.process.pid)
    first.process.kill()
    first.process.wait()
    assert left.is_dir()

    second = launch()
    second.wait_ready()

    assert not left.exists()
    (own,) = run_directories(second.process.pid)
    assert own.stat().st_mode & 0o777 == 0o700
    assert second.stop() == 0
    assert not own.exists()


def test_changed_weights_are_not_resumed_on(launch, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("quire-demo", None), folder)
    server = launch("--model", str(folder))
    server.wait_ready()

    os.utime(folder / "model.safetensors")
    server.worker().kill()

    assert server.process.wait(30) == 3
    assert "files changed since the start" in server.log

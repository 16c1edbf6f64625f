"""A worker that is started before anybody knows what it is for."""

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

from quire.config.settings import ServeSettings
from quire.pipelines.hf import resolve_model
from quire.server import worker_process
from quire.server.engine_client import EngineClient
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.supervisor import Supervisor
from quire.server.worker_process import start_worker_process, worker_ahead


async def test_it_is_the_first_worker_of_the_supervisor_and_the_next_is_another() -> None:
    model, lifecycle, metrics = resolve_model("quire-demo", None), Lifecycle(), Metrics("demo")
    client = EngineClient(8, lifecycle, metrics)
    async with worker_ahead() as worker:
        assert worker is not None
        supervisor = Supervisor(
            ServeSettings(threads=1), model, client, lifecycle, metrics, worker=worker
        )
        running = asyncio.create_task(supervisor.run())
        try:
            for is_first in (True, False):
                async with asyncio.timeout(90):
                    while not client.has_worker:
                        await asyncio.sleep(0.01)
                assert supervisor._process is not None
                assert (supervisor._process is worker) is is_first
                if is_first:
                    worker.kill()
                    async with asyncio.timeout(30):
                        while client.has_worker:
                            await asyncio.sleep(0.01)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def test_a_dead_one_is_not_used() -> None:
    model, lifecycle, metrics = resolve_model("quire-demo", None), Lifecycle(), Metrics("demo")
    client = EngineClient(8, lifecycle, metrics)
    dead = await start_worker_process()
    dead.kill()
    await dead.wait()
    supervisor = Supervisor(
        ServeSettings(threads=1), model, client, lifecycle, metrics, worker=dead
    )

    process = await supervisor._spawn("ipc:///nowhere")

    assert process is not dead
    assert process.returncode is None
    process.kill()
    await process.wait()
    supervisor._zmq.destroy(linger=0)


async def test_it_ends_with_who_started_it() -> None:
    with pytest.raises(ZeroDivisionError):
        async with worker_ahead() as worker:
            assert worker is not None
            raise ZeroDivisionError

    assert worker.returncode == -signal.SIGKILL


async def test_without_a_boot_line_it_leaves_quietly() -> None:
    worker = await start_worker_process()
    assert worker.stdin is not None
    worker.stdin.close()

    async with asyncio.timeout(60):
        assert await worker.wait() == 0


async def test_a_system_without_room_for_it_is_no_reason_to_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worker_process.sys, "executable", str(tmp_path / "nowhere"))
    async with worker_ahead() as worker:
        assert worker is None

"""The supervisor with real workers: what can go wrong around a worker's life."""

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from quire.config.errors import EngineLost
from quire.config.settings import ServeSettings
from quire.pipelines.hf import resolve_model
from quire.server import supervisor as module
from quire.server.engine_client import EngineClient
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.supervisor import Supervisor


async def until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


class Run:
    """A supervisor and the task that runs it; its temporary files are in `folder`."""

    def __init__(
        self, model: Path, folder: Path, worker: asyncio.subprocess.Process | None = None
    ) -> None:
        self.folder = folder
        self.lifecycle = Lifecycle()
        metrics = Metrics("demo")
        self.client = EngineClient(8, self.lifecycle, metrics)
        settings = ServeSettings(worker_timeout=1.0, threads=1)
        self.supervisor = Supervisor(
            settings, model, self.client, self.lifecycle, metrics, worker=worker
        )
        self.task = asyncio.create_task(self.supervisor.run())

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self.supervisor._process is not None
        return self.supervisor._process

    async def ready(self) -> None:
        await until(lambda: self.client.has_worker or self.task.done())
        assert self.client.has_worker

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """Of a copy of the demo model, so that nobody changes it under the run."""
    model = tmp_path / "model"
    shutil.copytree(resolve_model("quire-demo", None), model)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    running = Run(model, folder)
    yield running
    await running.stop()
    assert list(folder.iterdir()) == []


async def test_a_worker_that_does_not_listen_cannot_hold_up_the_end(run: Run) -> None:
    await run.ready()
    run.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()

    await run.stop()

    assert time.monotonic() - started < 10.0
    assert run.process.returncode == -signal.SIGKILL


async def test_signals_meant_for_the_daemon_leave_the_worker_alone(run: Run) -> None:
    await run.ready()

    for number in (signal.SIGINT, signal.SIGHUP):
        run.process.send_signal(number)
    await asyncio.sleep(0.3)

    assert run.process.returncode is None
    assert run.client.has_worker


async def test_a_lost_directory_does_not_stop_the_next_worker(run: Run) -> None:
    await run.ready()
    for path in run.folder.iterdir():
        shutil.rmtree(path)

    run.process.kill()
    await until(lambda: not run.client.has_worker)

    await run.ready()


async def test_a_worker_that_hangs_while_loading_is_replaced(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: run.supervisor._process is not None)
    await asyncio.sleep(0.2)
    first = run.process
    first.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(module, "START_PATIENCE", 1)

    await until(lambda: run.process is not first)
    monkeypatch.setattr(module, "START_PATIENCE", 100)

    assert first.returncode == -signal.SIGKILL
    await run.ready()


async def test_a_start_that_the_system_refuses_is_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run.ready()
    spawn, refusals = run.supervisor._spawn, [OSError(24, "Too many open files")]

    async def refuse_once(endpoint: str) -> asyncio.subprocess.Process:
        if refusals:
            raise refusals.pop()
        return await spawn(endpoint)

    monkeypatch.setattr(run.supervisor, "_spawn", refuse_once)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    run.process.kill()
    await until(lambda: not run.client.has_worker)

    await run.ready()
    assert refusals == []


async def test_a_first_start_that_the_system_refuses_is_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run.stop()
    folder = run.folder / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    again = Run(run.folder.parent / "model", folder)

    await asyncio.wait_for(again.task, 10)

    assert isinstance(again.supervisor.failure, EngineLost)
    assert "cannot be started" in str(again.supervisor.failure)
    folder.rmdir()

"""A live `quire serve` in its own process, driven through its port."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx2
import openai
import psutil
import pytest

LISTENING = re.compile(r"listening on (http://\S+)")


class LiveServer:
    """One daemon: its process, its base URL, its log."""

    def __init__(self, log: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.log_path = log
        self.started = time.monotonic()
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "quire.server", "serve", "--port", "0", *options],
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        self.url = self._wait_for_port()
        self.http = httpx2.Client(base_url=self.url, timeout=60.0)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def _wait_for_port(self) -> str:
        while True:
            if match := LISTENING.search(self.log):
                return match[1].removesuffix('"').removesuffix("}").removesuffix('"')
            assert self.process.poll() is None, self.log
            assert time.monotonic() - self.started < 20, self.log
            time.sleep(0.02)

    def wait_ready(self, timeout: float = 60.0) -> float:
        """Seconds from process start until /readyz is green."""
        while True:
            try:
                if self.http.get("/readyz").status_code == 200:
                    return time.monotonic() - self.started
            except httpx2.TransportError:
                pass
            assert self.process.poll() is None, self.log
            assert time.monotonic() - self.started < timeout, self.log
            time.sleep(0.02)

    def worker(self) -> psutil.Process:
        """The worker's process; waits for one while it is being replaced."""
        deadline = time.monotonic() + 20
        while True:
            for child in psutil.Process(self.process.pid).children():
                if "quire.pipelines.worker" in child.cmdline() or "quire: worker" in " ".join(
                    child.cmdline()
                ):
                    return child
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples with exactly this name."""
        total = 0.0
        found = False
        for line in self.http.get("/metrics").text.splitlines():
            if line.split("{")[0].split(" ")[0] == name:
                total += float(line.rsplit(" ", 1)[1])
                found = True
        assert found, f"no metric {name}"
        return total

    def wait_idle(self, timeout: float = 10.0) -> None:
        """Until nothing runs, waits or holds a page."""
        deadline = time.monotonic() + timeout
        names = (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
        )
        while any(self.metric(name) for name in names):
            assert time.monotonic() < deadline, {name: self.metric(name) for name in names}
            time.sleep(0.05)

    def stop(self, timeout: float = 15.0) -> int:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LiveServer]]:
    """Start servers with options; all are stopped at the end of the session."""
    servers: list[LiveServer] = []

    def start(*options: str, env: dict[str, str] | None = None) -> LiveServer:
        log = tmp_path_factory.mktemp("server") / "log"
        servers.append(LiveServer(log, *options, env=env))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def demo(launch: Callable[..., LiveServer]) -> LiveServer:
    """The demo model with default options."""
    server = launch()
    server.wait_ready()
    return server


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[LiveServer], openai.AsyncOpenAI]]:
    """The official client of a server; closed at the end of the test."""
    async with contextlib.AsyncExitStack() as stack:

        def client(server: LiveServer) -> openai.AsyncOpenAI:
            made = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            stack.push_async_callback(made.close)
            return made

        yield client

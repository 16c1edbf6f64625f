"""A daemon's files and batches in the test's own event loop, over an engine that says what a test
scripts, with a clock of the test's own."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from openai.types import Batch
from scripted_server import FakeEngine, train_tokenizer

from quire.config.settings import ServeSettings
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.app import build_app
from quire.server.auth import load_api_keys
from quire.server.batches.service import BatchService
from quire.server.http_protocol import BoundedHttpProtocol
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.openai.served import ServedModel

ENDED = ("completed", "failed", "expired", "cancelled")


class Clock:
    """Seconds since 1970 as the test sets them."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Site:
    """A running server, and what is behind it."""

    app: FastAPI
    service: BatchService
    metrics: Metrics
    clock: Clock
    server: uvicorn.Server
    serving: "asyncio.Task[None]"
    clients: list[Any] = field(default_factory=list)
    is_closed: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    @property
    def engine(self) -> FakeEngine:
        engine: FakeEngine = self.app.state.engine
        return engine

    def client(self, key: str = "none") -> openai.AsyncOpenAI:
        self.clients.append(
            openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)
        )
        return self.clients[-1]

    def http(self) -> httpx2.AsyncClient:
        self.clients.append(httpx2.AsyncClient(base_url=self.url, timeout=20.0))
        return self.clients[-1]

    async def ended(self, client: openai.AsyncOpenAI, batch_id: str, seconds: float = 10) -> Batch:
        """The batch when it has ended."""
        deadline = time.monotonic() + seconds
        while (batch := await client.batches.retrieve(batch_id)).status not in ENDED:
            assert time.monotonic() < deadline, batch
            await asyncio.sleep(0.01)
        return batch

    async def close(self) -> None:
        """As the daemon's shutdown."""
        if self.is_closed:
            return
        self.is_closed = True
        await self.service.runner.stop()
        for client in self.clients:
            await (client.close() if hasattr(client, "close") else client.aclose())
        self.server.should_exit = True
        await self.serving
        await self.service.close()


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return train_tokenizer()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
async def open_site(
    tokenizer: TextTokenizer, state_dir: Path, tmp_path: Path
) -> AsyncIterator[Callable[..., Any]]:
    """Starts servers on the same folder, one after another; `keys` is a key file's text."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            keys: str | None = None,
            engine: FakeEngine | None = None,
            clock: Clock | None = None,
            **options: Any,
        ) -> Site:
            if keys is not None:
                options["api_key_file"] = tmp_path / "keys"
                options["api_key_file"].write_text(keys)
            settings = ServeSettings(state_dir=state_dir, **options)
            metrics, lifecycle, clock = Metrics("tiny"), Lifecycle(), clock or Clock()
            lifecycle.on_ready()
            says = tokenizer.encode("Hello world", add_special_tokens=False)
            says.append(tokenizer.eos_token_id or 0)
            engine = engine or FakeEngine(script=lambda context: says)
            app = build_app(settings, engine, load_api_keys(settings), metrics, lifecycle)
            app.state.served = ServedModel(
                names=("tiny",),
                tokenizer=tokenizer,
                vocab_size=tokenizer.vocab_size,
                eos_token_ids=(2,),
                system_fingerprint="fp_test",
            )
            service = BatchService(settings, app, metrics.batches, clock)
            app.state.batches = service
            service.start()
            config = uvicorn.Config(
                app, port=0, lifespan="off", log_config=None, http=BoundedHttpProtocol
            )
            server = uvicorn.Server(config)
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            serving = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.005)
            site = Site(app, service, metrics, clock, server, serving)
            stack.push_async_callback(site.close)
            return site

        yield start


@pytest.fixture
async def site(open_site: Callable[..., Any]) -> Site:
    site: Site = await open_site()
    return site


@pytest.fixture(scope="session")
def request_lines() -> Callable[..., bytes]:
    """JSONL of chat requests: one per keyword of `bodies`, with what the body has beside the
    message."""

    def lines(count: int = 0, **bodies: dict[str, Any]) -> bytes:
        bodies = {**{f"request-{index}": {} for index in range(count)}, **bodies}
        message = {"role": "user", "content": "Hello"}
        return b"".join(
            json.dumps(
                {
                    "custom_id": custom_id,
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {"model": "tiny", "messages": [message], **body},
                }
            ).encode()
            + b"\n"
            for custom_id, body in bodies.items()
        )

    return lines


@pytest.fixture(scope="session")
def submit() -> Callable[..., Any]:
    """Uploads a file and makes a batch of it, as the official client does."""

    async def submit(client: openai.AsyncOpenAI, lines: bytes, **options: Any) -> Batch:
        file = await client.files.create(file=("in.jsonl", lines), purpose="batch")
        return await client.batches.create(
            input_file_id=file.id,
            endpoint=options.pop("endpoint", "/v1/chat/completions"),
            completion_window="24h",
            **options,
        )

    return submit


@pytest.fixture(scope="session")
def read_lines() -> Callable[..., Any]:
    """The JSON lines of a file, by custom_id; no custom_id may be there twice."""

    async def read(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
        if file_id is None:
            return {}
        content = await client.files.content(file_id)
        rows = [json.loads(line) for line in content.text.splitlines()]
        found = {row["custom_id"]: row for row in rows}
        assert len(found) == len(rows)
        return found

    return read

"""A live uvicorn around any ASGI app, a small HTTP client that sends what it is told, an app."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from quire.config.settings import ServeSettings
from quire.pipelines.core.context import TextContext
from quire.server.app import build_app
from quire.server.auth import load_api_keys
from quire.server.engine import Caller, Origin, TokenStream
from quire.server.errors import EngineUnavailable
from quire.server.http_protocol import BoundedHttpProtocol
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics


class UnavailableEngine:
    """An engine whose model never gets ready."""

    max_length = 64

    def new_request_id(self) -> int:
        return 1

    def check_available(self) -> None:
        raise EngineUnavailable("The model is not ready: starting", 1.0)

    def check_room(self, caller: Caller | None) -> None:
        self.check_available()

    def has_room(self, count: int, caller: Caller | None) -> bool:
        self.check_available()
        return False

    def submit(self, contexts: Sequence[TextContext], origin: Origin) -> list[TokenStream]:
        raise EngineUnavailable("The model is not ready: starting", 1.0)


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class LiveServer:
    port: int

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Reply:
        """One request with exactly these headers (plus Host and Content-Length if not given)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        names = {name.lower() for name, _ in headers}
        connection.putrequest(method, path, skip_host="host" in names, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if body is not None and not names & {"content-length", "transfer-encoding"}:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        with contextlib.closing(connection):
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, received, response.read())

    def get(self, path: str, **headers: str) -> Reply:
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return self.request("GET", path, headers=named)

    @contextlib.contextmanager
    def connect(self) -> Iterator[socket.socket]:
        """A raw connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as raw:
            yield raw


def read_all(raw: socket.socket) -> bytes:
    """Everything until the server closes; a reset counts as a close."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := raw.recv(65536):
            received += chunk
    return received


@pytest.fixture(scope="session")
def drain() -> Callable[[socket.socket], bytes]:
    return read_all


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[ASGIApp], LiveServer]]:
    """Starts a server for an app; all stop at the end of the module."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: ASGIApp) -> LiveServer:
        config = uvicorn.Config(
            app,
            port=0,
            lifespan="off",
            log_config=None,
            access_log=False,
            http=BoundedHttpProtocol,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
            time.sleep(0.005)
        running.append((server, thread))
        return LiveServer(server.servers[0].sockets[0].getsockname()[1])

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(10)


@dataclass
class Daemon:
    """What the API process is made of, without its worker."""

    app: FastAPI
    metrics: Metrics
    lifecycle: Lifecycle


@pytest.fixture(scope="module")
def make_daemon(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Daemon]:
    def make(keys: str | None = None, **options: Any) -> Daemon:
        if keys is not None:
            path = tmp_path_factory.mktemp("auth") / "keys"
            path.write_text(keys)
            options["api_key_file"] = path
        settings = ServeSettings(**options)
        metrics, lifecycle = Metrics("demo"), Lifecycle()
        app = build_app(settings, UnavailableEngine(), load_api_keys(settings), metrics, lifecycle)
        return Daemon(app, metrics, lifecycle)

    return make


@pytest.fixture(scope="session")
def value_of() -> Callable[..., float]:
    """The value of one sample of a Metrics' exposition; 0 when there is no such series."""
    from prometheus_client.parser import text_string_to_metric_families

    def find(metrics: Metrics, name: str, **labels: str) -> float:
        text = metrics.render()[0].decode()
        found = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) <= 1, f"{name}{labels} is ambiguous"
        return found[0] if found else 0.0

    return find

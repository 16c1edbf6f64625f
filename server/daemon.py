"""`quire serve`: bind, answer at once, load behind, serve, drain, leave with the right code."""

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import uvicorn
from fastapi import FastAPI
from setproctitle import setproctitle

from quire.config.errors import ConfigError, PortInUse, QuireError
from quire.config.settings import ServeSettings
from quire.pipelines.architectures.served import served_architectures
from quire.pipelines.hf import resolve_model
from quire.pipelines.structured.compile_process import CompilerBoot
from quire.pipelines.weights.gguf_file import is_gguf
from quire.server.admin import build_admin_app
from quire.server.app import build_app
from quire.server.auth import ApiKeys, load_admin_keys, load_api_keys
from quire.server.batches.service import BatchService, background_places
from quire.server.engine_client import EngineClient
from quire.server.errors import EngineUnavailable
from quire.server.grammars import GrammarCompiler
from quire.server.http_protocol import BoundedHttpProtocol, Deadlines, protocol_with
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.openai.served import ServedModel
from quire.server.supervisor import Supervisor
from quire.server.tracing import Tracing, load_tracing

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEEP_ALIVE_SECONDS = 15
LAST_WORDS_SECONDS = 0.5
"""How long a client may take to read the error that ended its stream at shutdown."""
LAST_SPANS_SECONDS = 1.0
"""How long the collector may take to take the last spans at shutdown."""
_BACKLOG = 1024
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the daemon owns the signals and the order of shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def end_replies(self, seconds: float) -> None:
        """Let the replies under way reach their clients; cut off those that take longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.server_state.tasks:
                    await asyncio.sleep(0.02)
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedHttpProtocol) and connection.is_replying:
                connection.transport.abort()


class Daemon:
    """The API process's life, from the bound port to the exit code.

    `worker` waits for its boot line; without one, or when it is dead, one is started.
    """

    def __init__(
        self, settings: ServeSettings, worker: asyncio.subprocess.Process | None = None
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._lifecycle = Lifecycle()
        self._names = settings.served_model_name or (default_model_name(settings.model),)
        self._metrics = Metrics(self._names[0], maxserve_names=settings.maxserve_metrics)
        self._client = EngineClient(
            settings.max_batch_size + settings.max_queue_size,
            self._lifecycle,
            self._metrics,
            per_caller=settings.max_concurrency_per_key,
            background=background_places(settings),
        )
        self._supervisor: Supervisor | None = None
        self._grammars: GrammarCompiler | None = None
        self._batches: BatchService | None = None
        self._tracing: Tracing | None = None
        self._failure: QuireError | None = None
        self._shutdown = asyncio.Event()
        self._signals = 0

    async def run(self) -> None:
        """Serve until a signal.

        Raises:
            QuireError: why it cannot serve, with the exit code that says so.
        """
        setproctitle(f"quire: api {self._names[0]}")
        api_keys = load_api_keys(self._settings)
        admin_keys = load_admin_keys(self._settings, api_keys)
        _check_doors(self._settings, bool(api_keys))
        self._tracing = load_tracing(self._settings, self._metrics)
        listener = _bind(self._settings.host, self._settings.port)
        app = build_app(
            self._settings,
            self._client,
            api_keys,
            self._metrics,
            self._lifecycle,
            tracing=self._tracing,
        )
        if self._settings.state_dir is not None:
            self._batches = BatchService(self._settings, app, self._metrics.batches)
            app.state.batches = self._batches
            self._batches.start()
        http = _HttpServer(_uvicorn_config(app, self._settings))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, http)
        loop.add_signal_handler(signal.SIGHUP, _reload, api_keys, admin_keys)
        admin = self._start_admin(admin_keys)
        logger.info("listening on %s", _url(listener))
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        engine = asyncio.create_task(self._run_engine(app))
        stopping = asyncio.create_task(self._shutdown.wait())
        await asyncio.wait({serving, engine, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await self._stop(http, serving, engine)
        if admin is not None:
            admin[0].should_exit = True
            await admin[1]
        stopping.cancel()
        failure = self._failure or (self._supervisor.failure if self._supervisor else None)
        if failure is not None:
            raise failure

    def _start_admin(self, keys: ApiKeys) -> tuple[uvicorn.Server, "asyncio.Task[None]"] | None:
        """The admin listener and its end; None where none is wanted.

        Raises:
            PortInUse: its port is taken.
        """
        settings = self._settings
        if settings.admin_port is None:
            return None
        app = build_admin_app(settings, self._client, keys, self._metrics, self._lifecycle)
        listener = _bind("127.0.0.1", settings.admin_port, option="admin_port")
        logger.info("admin on %s", _url(listener))
        admin = _HttpServer(_uvicorn_config(app, settings))
        return admin, asyncio.create_task(admin.serve(sockets=[listener]))

    async def _run_engine(self, app: FastAPI) -> None:
        try:
            self._lifecycle.on_progress("resolving the model", 0.0)
            settings = self._settings
            # Before a download: a wrong module is a matter of milliseconds.
            architectures = await _in_thread(lambda: served_architectures(settings))
            folder = await _in_thread(
                lambda: resolve_model(settings.model, settings.revision, settings.load_format)
            )
            app.state.served = served = await _in_thread(
                lambda: ServedModel.from_folder(
                    folder,
                    self._names,
                    use_generation_config=settings.generation_config == "auto",
                    tool_call_parser=settings.tool_call_parser,
                    reasoning_parser=settings.reasoning_parser,
                    architectures=architectures,
                    task=settings.task,
                )
            )
            if served.sampling_defaults:
                defaults = " ".join(f"{k}={v:g}" for k, v in served.sampling_defaults.items())
                logger.info("sampling defaults of the model: %s", defaults)
            boot = CompilerBoot(str(folder), served.vocab_size, served.eos_token_ids)
            self._grammars = GrammarCompiler(boot, self._client.prepare_grammars)
            app.state.grammars = self._grammars
            self._supervisor = Supervisor(
                settings, folder, self._client, self._lifecycle, self._metrics, worker=self._worker
            )
            await self._supervisor.run()
        except QuireError as error:
            self._failure = error

    def _on_signal(self, http: uvicorn.Server) -> None:
        self._signals += 1
        if self._signals == 1:
            self._shutdown.set()
        else:
            http.force_exit = True
            self._client.fail_all(EngineUnavailable("The server is shutting down", 5.0))

    async def _stop(
        self, http: _HttpServer, serving: "asyncio.Task[None]", engine: "asyncio.Task[None]"
    ) -> None:
        """Not ready; let streams finish; end the rest with an error; close HTTP; end the worker."""
        self._lifecycle.on_draining()
        self._client.begin_drain()
        if self._batches is not None:
            await self._batches.runner.stop()
        if not engine.done():
            logger.info("draining live_streams=%d", self._client.num_live)
            await self._client.wait_until_empty(self._settings.shutdown_timeout)
        self._client.fail_all(EngineUnavailable("The server is shutting down", 5.0))
        if self._grammars is not None:
            await self._grammars.close()
        engine.cancel()
        await http.end_replies(LAST_WORDS_SECONDS)
        http.should_exit = True
        await serving
        if self._batches is not None:
            await self._batches.close()
        with contextlib.suppress(asyncio.CancelledError):
            await engine
        if self._tracing is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_in_thread(self._tracing.close), LAST_SPANS_SECONDS)
        logger.info("stopped")


def default_model_name(model: str) -> str:
    """What clients call a model that was given no name: a folder's own or a file's without its
    ending, else the id as given."""
    path = Path(model)
    if is_gguf(path) and path.is_file():
        return path.stem
    return path.resolve().name if path.is_dir() else model


def _uvicorn_config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    deadlines = Deadlines(
        header=settings.header_timeout, body=settings.body_timeout, reader=settings.reader_timeout
    )
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        http=protocol_with(deadlines),
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
        backlog=_BACKLOG,
    )


def _bind(host: str, port: int, *, option: str = "port") -> socket.socket:
    """A listening address, taken before anything is loaded.

    Raises:
        PortInUse: another process has it.
        ConfigError: the host is not an address of this machine.
    """
    listener = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Until one listens, a second daemon could bind the same address.
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"{option}: {port} on {host} is already in use") from None
        raise ConfigError(f"host: cannot bind {host}:{port}: {error.strerror}") from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _check_doors(settings: ServeSettings, has_keys: bool) -> None:
    """Raises ConfigError where nobody asks for a key, or for something that has no sense so."""
    if settings.host not in _LOOPBACK and not has_keys and not settings.insecure:
        raise ConfigError(
            f"host: {settings.host} is reachable from other machines and no --api-key-file is "
            "given; give one (or QUIRE_API_KEY), or --insecure to let everyone in"
        )
    if settings.max_concurrency_per_key is not None and not has_keys:
        raise ConfigError("max_concurrency_per_key: needs an --api-key-file or QUIRE_API_KEY")
    if settings.admin_key_file is not None and settings.admin_port is None:
        raise ConfigError("admin_key_file: needs an --admin-port")


def _reload(*all_keys: ApiKeys) -> None:
    """At SIGHUP: the key files of now. Open streams go on, whoever's they are."""
    for keys in dict.fromkeys(all_keys):
        try:
            keys.reload()
        except ConfigError as error:
            logger.error("API keys not reloaded, those of before stay why=%s", error)
        else:
            logger.warning("API keys reloaded keys=%d", len(keys))


async def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a daemon thread, so that a hanging download cannot hold up the exit."""
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    # A running future cannot be cancelled, so the thread always has where to leave its result.
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            outcome.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await asyncio.wrap_future(outcome)

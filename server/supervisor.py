"""The supervisor: starts the model worker, watches it, replaces it, and takes it down with itself.

Each worker is a fresh interpreter under its own epoch and socket, so that nothing of a dead one can
reach the next. Its standard input carries the boot line and is the lifeline: end of file ends it.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
import zmq
import zmq.asyncio

from quire.config.errors import ConfigError, EngineLost, ModelError, QuireError
from quire.config.settings import ModelSettings, ServeSettings
from quire.pipelines.architectures.custom import module_files
from quire.pipelines.core.messages import (
    Fatal,
    FromWorker,
    Progress,
    Ready,
    StepOutput,
    ToWorker,
)
from quire.pipelines.weights.formats import SUFFIXES
from quire.pipelines.weights.gguf_file import gguf_files, is_gguf
from quire.pipelines.worker.boot import MAX_MESSAGE_BYTES, Boot
from quire.pipelines.worker.host import available_cores
from quire.server.engine_client import EngineClient, ProtocolError
from quire.server.errors import EngineUnavailable
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.worker_process import start_worker_process

logger = logging.getLogger(__name__)

RESTARTS_PER_MINUTE = 5
START_PATIENCE = 5
"""How many times `worker_timeout` a worker may be silent while it loads: disks can be slow."""
LEAVE_SECONDS = 1.0
"""How long a worker that is asked to leave may take before it is killed."""
RETRY_SECONDS = 1.0
_FATAL_CODES = (ConfigError.exit_code, ModelError.exit_code)
_DIRECTORY_PREFIX = "quire-"


class Supervisor:
    """Owns the worker process and its socket; tells `EngineClient` what arrives.

    `failure` holds the error that ended it, when it gave up. `worker` is a process that waits for
    its boot line, to be the first.
    """

    def __init__(
        self,
        settings: ServeSettings,
        folder: Path,
        client: EngineClient,
        lifecycle: Lifecycle,
        metrics: Metrics,
        *,
        worker: asyncio.subprocess.Process | None = None,
    ) -> None:
        self.failure: QuireError | None = None
        self._settings = settings
        self._folder = folder
        self._client = client
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._epoch = 0
        self._waiting = worker
        # Whatever decides bits or lengths is the same for every epoch of this daemon.
        self._worker_settings = {
            **settings.model_dump(mode="json", include=set(ModelSettings.model_fields)),
            "threads": settings.threads or available_cores(),
        }
        self._files = _fingerprint(folder, settings.custom_architectures)
        self._process: asyncio.subprocess.Process | None = None
        self._last_frame = 0.0
        self._deaths: deque[float] = deque(maxlen=RESTARTS_PER_MINUTE)
        _sweep_stale_directories()
        self._zmq = zmq.asyncio.Context()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromWorker)

    async def run(self) -> None:
        """Keep one worker alive until cancelled; returns, with `failure` set, on giving up."""
        try:
            while self.failure is None:
                try:
                    await self._run_one_worker()
                except (OSError, zmq.ZMQError) as error:
                    await self._on_start_refused(error)
                else:
                    await self._back_off()
        finally:
            await self._end_worker()
            self._zmq.destroy(linger=0)
            if self.failure is not None:
                self._client.fail_all(EngineUnavailable("The engine is lost", 30.0))

    def kill_worker(self, reason: str) -> None:
        """SIGKILL the worker; it is replaced as after any death."""
        if self._process is not None and self._process.returncode is None:
            logger.error("killing worker pid=%d reason=%s", self._process.pid, reason)
            self._process.kill()

    async def _run_one_worker(self) -> None:
        self._epoch += 1
        self._last_frame = time.monotonic()
        receiver = watchdog = None
        with self._socket() as (socket, endpoint):
            try:
                self._process = await self._spawn(endpoint)
                receiver = asyncio.create_task(self._receive(socket, self._epoch))
                watchdog = asyncio.create_task(self._watch_progress())
                code = await self._process.wait()
                await self._drain_last_words(receiver, code)
            finally:
                for task in (receiver, watchdog):
                    if task is not None:
                        task.cancel()
                self._client.detach()
        if self.failure is None:
            self._note_death(code)

    @contextlib.contextmanager
    def _socket(self) -> Iterator[tuple[zmq.asyncio.Socket, str]]:
        """A bound socket and its address, in a directory that only this user can enter.

        One directory per worker: whatever cleans the temporary directory up in a daemon's long
        life, the next worker can start.
        """
        prefix = f"{_DIRECTORY_PREFIX}{os.getpid()}-"
        with (
            tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as directory,
            self._zmq.socket(zmq.DEALER) as socket,
        ):
            for option, value in (
                (zmq.SNDHWM, 0),
                (zmq.RCVHWM, 0),
                (zmq.LINGER, 0),
                (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
            ):
                socket.set(option, value)
            endpoint = f"ipc://{directory}/worker"
            socket.bind(endpoint)
            yield socket, endpoint

    async def _on_start_refused(self, error: Exception) -> None:
        # No descriptor, no memory or no room: at the first start for good, later it may pass.
        if not self._lifecycle.has_started:
            self.failure = EngineLost(f"the model worker cannot be started: {error}")
            return
        logger.error("worker not started, trying again why=%s", error)
        await asyncio.sleep(RETRY_SECONDS)

    async def _spawn(self, endpoint: str) -> asyncio.subprocess.Process:
        process, self._waiting = self._waiting, None
        if process is None or process.returncode is not None:
            process = await start_worker_process()
        boot = Boot(self._epoch, endpoint, str(self._folder), self._worker_settings)
        assert process.stdin is not None
        # A child that is dead already has closed its end; its exit code tells.
        with contextlib.suppress(RuntimeError, OSError):
            process.stdin.write(msgspec.json.encode(boot) + b"\n")
        logger.info("worker started pid=%d epoch=%d", process.pid, self._epoch)
        return process

    async def _receive(self, socket: zmq.asyncio.Socket, epoch: int) -> None:
        def send(message: ToWorker) -> None:
            # The peer is connected (it spoke first) and there is no high-water mark: the message
            # is queued in the socket at once, and the future is already done.
            socket.send(self._encoder.encode(message))

        while True:
            frame = await socket.recv()
            self._last_frame = time.monotonic()
            try:
                message = self._decoder.decode(frame)
                if message.epoch != epoch:
                    raise ProtocolError(f"epoch {message.epoch} on the socket of epoch {epoch}")
                match message:
                    case StepOutput():
                        self._client.receive(message)
                    case Progress(phase=phase, fraction=fraction):
                        self._lifecycle.on_progress(phase, fraction)
                    case Ready():
                        self._on_ready(message, send)
                    case Fatal():
                        self._on_fatal(message)
                        return
            except (msgspec.DecodeError, ProtocolError) as error:
                self.kill_worker(f"protocol: {error}")
                return

    def _on_ready(self, ready: Ready, send: Callable[[ToWorker], None]) -> None:
        if not self._lifecycle.has_started:
            for line in ready.memory_table.splitlines():
                logger.info("memory plan: %s", line)
            if ready.cpu_kernels == "torch":
                logger.warning(
                    "the native CPU kernels were not built (no C++ compiler at install?): "
                    "attention runs on torch, several times slower"
                )
            elif ready.cpu_kernels:
                logger.info("native CPU kernels: %s", ready.cpu_kernels)
        logger.info(
            "worker ready pid=%d epoch=%d device=%s dtype=%s max_length=%d pages=%d page_size=%d",
            ready.pid,
            ready.epoch,
            ready.device,
            ready.dtype,
            ready.max_length,
            ready.num_pages,
            ready.page_size,
        )
        self._worker_settings["max_length"] = ready.max_length
        self._client.attach(ready, send)
        self._lifecycle.on_ready()

    def _on_fatal(self, fatal: Fatal) -> None:
        kinds = {ConfigError.exit_code: ConfigError, ModelError.exit_code: ModelError}
        self.failure = kinds.get(fatal.exit_code, EngineLost)(fatal.message)

    async def _drain_last_words(self, receiver: "asyncio.Task[None]", code: int) -> None:
        # A dying worker's last frames may still be in the socket; they are valid tokens. One that
        # could not serve said why: that message ends the receiver, so it is worth a longer wait.
        await asyncio.wait({receiver}, timeout=1.0 if code in _FATAL_CODES else 0.05)

    def _note_death(self, code: int) -> None:
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        logger.error(
            "worker died epoch=%d why=%s live_streams=%d", self._epoch, why, self._client.num_live
        )
        now = time.monotonic()
        self._deaths.append(now)
        if code > 0 and not self._lifecycle.has_started:
            # It failed by itself before it ever served; the next would fail alike.
            self.failure = EngineLost("the model worker failed to start; why is above")
        if len(self._deaths) == RESTARTS_PER_MINUTE and now - self._deaths[0] < 60.0:
            self.failure = EngineLost(
                f"the model worker died {RESTARTS_PER_MINUTE} times in 60 s, last by {why}"
            )
        if _fingerprint(self._folder, self._settings.custom_architectures) != self._files:
            self.failure = ModelError(
                f"{self._folder}: the files changed since the start; open streams cannot be "
                "resumed on other weights"
            )
        self._metrics.on_worker_restart()
        self._lifecycle.on_worker_lost(f"worker died: {why}")

    async def _back_off(self) -> None:
        # The first restart is immediate: a single death must cost streams as little as possible.
        if self.failure is not None:
            return
        recent = sum(1 for death in self._deaths if time.monotonic() - death < 60.0)
        if recent > 1:
            await asyncio.sleep(0.25 * 2 ** (recent - 2))

    async def _watch_progress(self) -> None:
        limit = self._settings.worker_timeout
        pause = min(1.0, limit / 4)
        now = time.monotonic()
        while True:
            before = now
            await asyncio.sleep(pause)
            now = time.monotonic()
            if now - before > 2 * pause:
                # This process was held up (stopped, or out of CPU): what the worker sent
                # meanwhile is still to be read.
                continue
            silent = now - self._client.last_progress
            if self._client.is_busy and silent > limit:
                self.kill_worker(f"no progress for {silent:.1f} s, worker_timeout is {limit:g} s")
            silent = now - self._last_frame
            if not self._client.has_worker and silent > START_PATIENCE * limit:
                self.kill_worker(
                    f"silent for {silent:.1f} s while loading, {START_PATIENCE} times "
                    f"worker_timeout ({limit:g} s) are allowed"
                )

    async def _end_worker(self) -> None:
        """Ask the worker to leave, then make it."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), LEAVE_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def _fingerprint(folder: Path, modules: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files that decide what the model says."""
    if is_gguf(folder):
        paths = [path for path in gguf_files(folder) if path.exists()]
    else:
        paths = [path for path in folder.iterdir() if path.suffix in (".json", *SUFFIXES)]
    paths += [path for path in module_files(modules) if path.exists()]
    return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def _sweep_stale_directories() -> None:
    """Remove what a SIGKILLed daemon of this user left behind."""
    for path in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY_PREFIX}*-*"):
        pid = path.name.removeprefix(_DIRECTORY_PREFIX).partition("-")[0]
        # Another daemon may sweep the same directory at this moment.
        with contextlib.suppress(FileNotFoundError):
            if (
                pid.isdecimal()
                and stat.S_ISDIR((status := path.lstat()).st_mode)
                and status.st_uid == os.getuid()
                and not psutil.pid_exists(int(pid))
            ):
                shutil.rmtree(path, ignore_errors=True)

"""The worker process: load the model, announce the pages, then receive, step, send for ever.

It blocks in poll when idle. It dies with the API process: the kernel sends SIGKILL
(PR_SET_PDEATHSIG), and the end of standard input ends it where that does not exist.
"""

import gc
import logging
import os
import select
import signal
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import zmq
from setproctitle import setproctitle

from quire.config.errors import QuireError
from quire.config.settings import ModelSettings
from quire.pipelines.core.child_process import die_with_parent, prefer_as_oom_victim
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.messages import (
    Abort,
    Fatal,
    FromWorker,
    PrepareGrammars,
    Progress,
    ResetPrefixCache,
    Submit,
    ToWorker,
)
from quire.pipelines.worker.boot import MAX_MESSAGE_BYTES, Boot
from quire.pipelines.worker.engine import WorkerEngine
from quire.pipelines.worker.progress import progress_bar

if TYPE_CHECKING:
    from quire.pipelines.structured.matcher import GrammarMatchers

logger = logging.getLogger(__name__)

LOADING_POLL_MS = 2
"""How often an idle worker looks whether a grammar has been read."""


class WorkerProcess:
    """One worker's life: its socket, its engine, its loop."""

    def __init__(self, boot: Boot) -> None:
        self._boot = boot
        self._matchers: GrammarMatchers | None = None
        self._loading: list[tuple[TextContext, Future[Any]]] = []
        """Contexts that wait for their grammars."""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.set(zmq.LINGER, 1000)
        self._socket.connect(boot.endpoint)

    def run(self) -> int:
        """Serve for ever; returns an exit code only when the model cannot be served."""
        try:
            self._serve(self._load())
        except QuireError as error:
            self._send(Fatal(self._boot.epoch, error.exit_code, str(error)))
            return error.exit_code
        finally:
            self._context.destroy(linger=1000)

    def _load(self) -> WorkerEngine:
        epoch = self._boot.epoch
        self._send(Progress(epoch, "starting", 0.0))
        _import_engine()
        from quire.pipelines.worker.start import StartedEngine, start_worker

        settings = ModelSettings.model_validate(self._boot.settings)
        with progress_bar() as show:

            def progress(phase: str, fraction: float) -> None:
                self._send(Progress(epoch, phase, fraction))
                show(phase, fraction)

            started = start_worker(settings, Path(self._boot.folder), epoch, progress)
        self._matchers = started.matchers if isinstance(started, StartedEngine) else None
        _keep_what_is_alive()
        gc.enable()
        self._send(started.ready(os.getpid()))
        return started.engine

    def _serve(self, engine: WorkerEngine) -> NoReturn:
        while True:
            self._receive(engine)
            output = engine.step()
            if output is not None:
                self._send(output)

    def _receive(self, engine: WorkerEngine) -> None:
        """Handle every waiting message; block for one when there is no work."""
        changed = False
        while True:
            self._submit_loaded(engine)
            idle = not engine.has_work
            if idle and self._loading:
                self._socket.poll(LOADING_POLL_MS)
                idle = False
            if idle and changed:
                self._send(engine.stats_frame())
                changed = False
            try:
                frame = self._socket.recv(0 if idle else zmq.NOBLOCK)
            except zmq.Again:
                return
            message = self._decoder.decode(frame)
            if message.epoch != self._boot.epoch:
                continue
            match message:
                case Submit():
                    self._submit(engine, message)
                case Abort(request_ids=request_ids):
                    engine.abort(request_ids)
                    self._loading = [
                        item for item in self._loading if item[0].request_id not in request_ids
                    ]
                case ResetPrefixCache():
                    engine.reset_prefix_cache()
                case PrepareGrammars():
                    self._grammars().prepare()
            changed = True

    def _submit(self, engine: WorkerEngine, message: Submit) -> None:
        grammars = {grammar.digest: grammar for grammar in message.grammars}
        for wire in message.contexts:
            context = TextContext.from_wire(wire)
            if not context.grammar_digest:
                engine.submit([context])
            elif (grammar := grammars.get(context.grammar_digest)) is None:
                engine.reject(context, "structured output: the request came without its grammar")
            else:
                self._loading.append((context, self._grammars().load(grammar)))

    def _submit_loaded(self, engine: WorkerEngine) -> None:
        """Hand the engine the contexts whose grammars have been read meanwhile."""
        waiting, self._loading = self._loading, []
        for context, loading in waiting:
            if not loading.done():
                self._loading.append((context, loading))
                continue
            try:
                self._grammars().attach(context, loading)
            except ValueError as error:
                engine.reject(context, f"structured output: {error}")
            else:
                engine.submit([context])

    def _grammars(self) -> "GrammarMatchers":
        assert self._matchers is not None
        return self._matchers

    def _send(self, message: FromWorker) -> None:
        self._socket.send(self._encoder.encode(message))


def _end_with_input() -> None:
    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _import_engine() -> None:
    """Torch and all that needs it: two seconds, in which the API process may prepare the boot line.

    From here until the model is loaded nothing is collected: nearly all of it stays.
    """
    gc.disable()
    import quire.pipelines.worker.start  # noqa: F401 - imported again where it is used

    gc.freeze()


def _keep_what_is_alive() -> None:
    """Everything alive now lives as long as the process: keep it out of later collections."""
    gc.collect()
    gc.freeze()


def main() -> None:
    """Import, read the boot line, serve, and leave with a code the supervisor understands."""
    # Ctrl-C goes to the whole terminal group; the API process decides when the worker stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # To the API process a hangup means: read the keys again.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parent = os.getppid()
    die_with_parent(parent)
    prefer_as_oom_victim()
    # Told already, it first says that it is there: whoever waits for it would think it hangs.
    if not select.select([sys.stdin], [], [], 0)[0]:
        _import_engine()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    boot = msgspec.json.decode(line, type=Boot)
    setproctitle(f"quire: worker {boot.epoch} {Path(boot.folder).name}")
    _end_with_input()
    try:
        code = WorkerProcess(boot).run()
    except Exception:
        logger.exception("worker failed epoch=%d", boot.epoch)
        code = 1
    # Skips interpreter teardown, which can hang in a library's thread pool.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

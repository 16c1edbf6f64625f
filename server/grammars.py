"""`GrammarCompiler`: grammars for requests, compiled in a process that may be killed.

A client's schema decides how long compiling takes and how much memory, so neither the event loop
nor the worker does it. Results are kept by digest.
"""

import asyncio
import contextlib
import hashlib
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

import msgspec

from quire.config.api_keys_env import environment_without_keys
from quire.config.limits import LIMITS
from quire.pipelines.core.grammar import Grammar, GrammarSpec
from quire.pipelines.structured.compile_process import HEADER, Compiled, CompilerBoot
from quire.server.errors import EngineUnavailable, InternalError, InvalidRequest, Overloaded

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
MAX_KEPT_BYTES = 64 * 1024**2
"""Of grammars that no request has."""
MAX_LIVE_BYTES = 1024**3
"""Of all grammars, those of the requests under way included."""
MAX_WAITING = 64
"""Requests whose grammars are not compiled yet."""


class GrammarCompiler:
    """Compiles for the model of `boot`. `on_first_use` is called before the first grammar."""

    def __init__(self, boot: CompilerBoot, on_first_use: Callable[[], None]) -> None:
        self._boot = boot
        self._on_first_use = on_first_use
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._kept_bytes = 0
        self._live: WeakValueDictionary[str, Grammar] = WeakValueDictionary()
        self._waiting = 0
        self._is_closed = False

    async def compile(self, spec: GrammarSpec, param: str) -> Grammar:
        """The grammar of request field `param`.

        Raises:
            InvalidRequest: it is too large, takes too long, or is wrong.
            Overloaded: too many are waiting, or too many large ones are in use.
        """
        size = len(spec.source.encode())
        if size > LIMITS.grammar_bytes:
            raise _refusal(param, f"has {size} bytes; the limit is {LIMITS.grammar_bytes}")
        digest = hashlib.sha256(msgspec.msgpack.encode(spec)).hexdigest()
        # A known grammar waits for nobody's unknown one.
        found = self._live.get(digest)
        if found is None:
            found = await self._in_turn(digest, spec, param)
        self._keep(found)
        return found

    async def _in_turn(self, digest: str, spec: GrammarSpec, param: str) -> Grammar:
        if self._waiting >= MAX_WAITING:
            raise Overloaded(
                f"{self._waiting} grammars wait to be compiled, which is the limit", 1.0
            )
        self._waiting += 1
        try:
            async with self._lock:
                found = self._live.get(digest)
                if found is None:
                    found = Grammar(digest, await self._compiled(spec, param))
                    self._add_live(found)
                return found
        finally:
            self._waiting -= 1

    def _add_live(self, grammar: Grammar) -> None:
        live = sum(len(other.data) for other in self._live.values())
        if live + len(grammar.data) > MAX_LIVE_BYTES:
            raise Overloaded(
                f"The grammars of the requests under way take {live} bytes, this one "
                f"{len(grammar.data)}; the limit is {MAX_LIVE_BYTES}",
                5.0,
            )
        self._live[grammar.digest] = grammar

    async def close(self) -> None:
        """End the process; what is or will be asked for is unavailable."""
        self._is_closed = True
        await self._end_process()

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _compiled(self, spec: GrammarSpec, param: str) -> str:
        for _ in range(2):
            # One death may have come from outside; two say that it is the grammar.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                return await self._attempt(spec, param)
        raise _refusal(param, "takes too much memory to compile, or ends the compiler")

    async def _attempt(self, spec: GrammarSpec, param: str) -> str:
        process = await self._running()
        try:
            async with asyncio.timeout(LIMITS.grammar_seconds):
                frame = await _asked(process, msgspec.msgpack.encode(spec))
        except TimeoutError:
            await self._end_process()
            raise _refusal(
                param, f"takes more than {LIMITS.grammar_seconds:g} seconds to compile"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            # Half a frame may be on its way: the next request must not read it as its own.
            await self._end_process()
            raise
        compiled = msgspec.msgpack.decode(frame, type=Compiled)
        if compiled.error:
            raise _refusal(param, f"cannot be compiled: {compiled.error}")
        return compiled.data

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._check_open()
        self._on_first_use()
        logger.info("starting the grammar compiler")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "quire.pipelines.structured.compile_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**26,
            env=environment_without_keys(),
        )
        self._process = process
        try:
            async with asyncio.timeout(START_SECONDS):
                await _asked(process, msgspec.json.encode(self._boot))
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            await self._end_process()
            self._check_open()
            raise InternalError("The grammar compiler could not be started") from None
        except asyncio.CancelledError:
            await self._end_process()
            raise
        return process

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineUnavailable("The server is shutting down", 5.0)

    def _keep(self, grammar: Grammar) -> None:
        if grammar.digest not in self._kept:
            self._kept[grammar.digest] = grammar
            self._kept_bytes += len(grammar.data)
        self._kept.move_to_end(grammar.digest)
        while self._kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped.data)


async def _asked(process: asyncio.subprocess.Process, data: bytes) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(HEADER.pack(len(data)) + data)
    await process.stdin.drain()
    header = await process.stdout.readexactly(HEADER.size)
    return await process.stdout.readexactly(HEADER.unpack(header)[0])


def _refusal(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' {message}", param=param, code="invalid_value")

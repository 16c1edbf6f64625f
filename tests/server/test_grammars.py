"""The grammar compiler's process: what is kept, what takes too long, what kills it."""

import asyncio
import dataclasses

import pytest

from quire.config.limits import LIMITS
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.core.grammar import GrammarSpec
from quire.pipelines.hf import resolve_model
from quire.pipelines.structured.compile_process import CompilerBoot
from quire.server import grammars
from quire.server.errors import EngineUnavailable, InternalError, InvalidRequest, Overloaded
from quire.server.grammars import GrammarCompiler

SLOW = GrammarSpec("regex", "(" + "|".join(f"{n * n}x{n}" for n in range(9000)) + ")")
"""It takes a second or more."""


@pytest.fixture
def boot():
    folder = resolve_model("quire-demo", None)
    return CompilerBoot(str(folder), load_model_spec(folder).vocab_size, (2,))


@pytest.fixture
async def compiler(boot):
    compiler = GrammarCompiler(boot, lambda: None)
    yield compiler
    await compiler.close()


async def test_the_life_of_a_compiler(boot, monkeypatch):
    """One test, since each start of the process takes a second."""
    calls = []
    compiler = GrammarCompiler(boot, lambda: calls.append(1))

    first = await compiler.compile(GrammarSpec("regex", "a+"), "p")
    assert await compiler.compile(GrammarSpec("regex", "a+"), "p") is first
    assert calls == [1]

    # Nobody waits for a grammar that is known, nor longer than its turn.
    slow = asyncio.create_task(compiler.compile(SLOW, "p"))
    await asyncio.sleep(0.05)
    assert await compiler.compile(GrammarSpec("regex", "a+"), "p") is first
    assert not slow.done()
    monkeypatch.setattr(grammars, "MAX_WAITING", 1)
    with pytest.raises(Overloaded, match="1 grammars wait"):
        await compiler.compile(GrammarSpec("regex", "b+"), "p")

    # A client that leaves ends its compilation, and does not confuse the next.
    assert not slow.done()
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        await compiler.compile(GrammarSpec("regex", "(b"), "p")
    assert calls == [1, 1]

    # Together they are bounded.
    monkeypatch.setattr(grammars, "MAX_LIVE_BYTES", len(first.data) + 10)
    with pytest.raises(Overloaded, match="the limit is"):
        await compiler.compile(GrammarSpec("regex", "c+"), "p")
    monkeypatch.undo()

    # A dead process is replaced; a slow one is killed.
    process = compiler._process
    process.kill()
    assert (await compiler.compile(GrammarSpec("regex", "d"), "p")).digest != first.digest
    assert calls == [1, 1, 1]
    process = compiler._process
    monkeypatch.setattr(grammars, "LIMITS", dataclasses.replace(LIMITS, grammar_seconds=0.001))
    with pytest.raises(InvalidRequest, match="'p' takes more than 0.001 seconds to compile"):
        await compiler.compile(SLOW, "p")
    assert process.returncode is not None

    # The daemon ends: whoever waits hears of it.
    monkeypatch.undo()
    slow = asyncio.create_task(compiler.compile(SLOW, "p"))
    behind = asyncio.create_task(compiler.compile(GrammarSpec("regex", "e"), "p"))
    await asyncio.sleep(0.05)
    await compiler.close()
    for task in (slow, behind):
        with pytest.raises(EngineUnavailable):
            await task


async def test_a_compiler_that_cannot_start_is_the_servers_fault():
    compiler = GrammarCompiler(CompilerBoot("/nowhere", 10, ()), lambda: None)

    with pytest.raises(InternalError, match="could not be started"):
        await compiler.compile(GrammarSpec("regex", "a"), "p")


async def test_what_is_kept_is_bounded(compiler, monkeypatch):
    async def compiled(spec, param):
        return spec.source * 100

    monkeypatch.setattr(compiler, "_compiled", compiled)
    monkeypatch.setattr(grammars, "MAX_KEPT_BYTES", 250)

    used = await compiler.compile(GrammarSpec("regex", "u"), "p")
    for name in "abc":
        await compiler.compile(GrammarSpec("regex", name), "p")

    assert [grammar.data[0] for grammar in compiler._kept.values()] == ["b", "c"]
    # What a request still has is found again.
    assert await compiler.compile(GrammarSpec("regex", "u"), "p") is used

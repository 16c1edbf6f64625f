"""The grammar compiler's process: what is kept, what takes too long, what kills it."""

import asyncio
import dataclasses

import pytest

from quire.config.limits import LIMITS
from quire.pipelines.architectures.spec import load_model_spec
from quire.pipelines.core.grammar import GrammarSpec
from quire.pipelines.hf import resolve_model
from quire.pipelines.structured.compile_process import CompilerBoot
from quire.server import grammars
from quire.server.errors import InternalError, InvalidRequest
from quire.server.grammars import GrammarCompiler


@pytest.fixture
def boot():
    folder = resolve_model("quire-demo", None)
    return CompilerBoot(str(folder), load_model_spec(folder).vocab_size, (2,))


@pytest.fixture
async def compiler(boot):
    calls = []
    compiler = GrammarCompiler(boot, lambda: calls.append(1))
    compiler.calls = calls
    yield compiler
    await compiler.close()


async def test_a_grammar_is_compiled_once_and_its_makers_death_is_survived(compiler):
    first = await compiler.compile(GrammarSpec("regex", "a+"), "p")
    assert await compiler.compile(GrammarSpec("regex", "a+"), "p") is first
    assert compiler.calls == [1]

    compiler._process.kill()
    second = await compiler.compile(GrammarSpec("regex", "b+"), "p")

    assert second.digest != first.digest
    assert compiler.calls == [1, 1]


async def test_a_slow_grammar_is_refused_and_its_process_killed(compiler, monkeypatch):
    await compiler.compile(GrammarSpec("regex", "a"), "p")
    process = compiler._process
    monkeypatch.setattr(grammars, "LIMITS", dataclasses.replace(LIMITS, grammar_seconds=0.001))

    with pytest.raises(InvalidRequest, match="'p' takes more than 0.001 seconds to compile"):
        await compiler.compile(GrammarSpec("regex", "(a|b|cd){1,500}" * 20), "p")

    assert process.returncode is not None
    monkeypatch.setattr(grammars, "LIMITS", LIMITS)
    assert (await compiler.compile(GrammarSpec("regex", "c"), "p")).data


async def test_a_client_that_leaves_does_not_confuse_the_next(compiler):
    await compiler.compile(GrammarSpec("regex", "a"), "p")
    gone = asyncio.create_task(compiler.compile(GrammarSpec("regex", "[a-z]{1,400}" * 9), "p"))
    await asyncio.sleep(0.005)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone

    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        await compiler.compile(GrammarSpec("regex", "(b"), "p")


async def test_a_compiler_that_cannot_start_is_the_servers_fault(boot, monkeypatch):
    compiler = GrammarCompiler(CompilerBoot("/nowhere", 10, ()), lambda: None)

    with pytest.raises(InternalError, match="could not be started"):
        await compiler.compile(GrammarSpec("regex", "a"), "p")


async def test_what_is_kept_is_bounded(compiler, monkeypatch):
    monkeypatch.setattr(grammars, "MAX_KEPT_BYTES", 1)

    for name in "abc":
        await compiler.compile(GrammarSpec("regex", name), "p")

    assert len(compiler._kept) == 1

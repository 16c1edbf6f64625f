"""What a batch that was interrupted becomes when the daemon is there again."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import openai
from scripted_server import FakeEngine


class Script(FakeEngine):
    """Answers with the number of the request; `good` of them at once, the others never."""

    def __init__(self, tokenizer: Any, good: int) -> None:
        super().__init__(script=self._say)
        self._tokenizer, self._good = tokenizer, good
        self.prompts: list[str] = []

    def _say(self, context: Any) -> list[int]:
        self.prompts.append(self._tokenizer.decode(context.tokens.prompt.tolist()))
        self._good -= 1
        if self._good < 0:
            return []
        return [*self._tokenizer.encode("ok", add_special_tokens=False), 2]


def numbered(request_lines: Any, count: int) -> bytes:
    lines: bytes = request_lines(
        **{
            f"r{index}": {"messages": [{"role": "user", "content": f"number {index}."}]}
            for index in range(count)
        }
    )
    return lines


async def test_a_batch_goes_on_with_what_was_not_done(
    open_site: Any, request_lines: Any, submit: Any, read_lines: Any, tokenizer: Any
) -> None:
    first = await open_site(engine=Script(tokenizer, good=8))
    client = first.client()
    made = await submit(client, numbered(request_lines, 20))
    while (await client.batches.retrieve(made.id)).request_counts.completed < 8:
        await asyncio.sleep(0.01)
    await first.close()
    assert first.engine.num_live == 0

    second = await open_site(engine=Script(tokenizer, good=100), clock=first.clock)
    client = second.client()
    batch = await second.ended(client, made.id)

    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 20, "completed": 20, "failed": 0}
    assert len(await read_lines(client, batch.output_file_id)) == 20
    assert len(second.engine.prompts) == 12, "what was done is not done again"


async def test_a_copy_taken_at_any_moment_ends_with_every_line_once(
    open_site: Any,
    request_lines: Any,
    submit: Any,
    read_lines: Any,
    tokenizer: Any,
    state_dir: Path,
    tmp_path: Path,
) -> None:
    """The folder as a kill would leave it: copied while the daemon works on it."""
    site = await open_site(engine=Script(tokenizer, good=1000))
    site.engine.delay = 0.005
    client = site.client()
    made = await submit(client, numbered(request_lines, 60))
    copies = []
    while (status := (await client.batches.retrieve(made.id)).status) != "completed":
        copies.append(tmp_path / f"copy-{len(copies)}")
        await site.service.store.run(lambda store: shutil.copytree(state_dir, copies[-1]))
        await asyncio.sleep(0.01)
    assert status == "completed" and len(copies) > 2
    await site.close()

    for copy in (copies[0], copies[-1]):
        shutil.rmtree(state_dir)
        shutil.copytree(copy, state_dir)
        (state_dir / "files" / f"{'0' * 32}.part").write_bytes(b"half a file")
        (state_dir / "files" / "notes.txt").write_bytes(b"a person's own")
        again = await open_site(engine=Script(tokenizer, good=1000), clock=site.clock)
        client = again.client()
        batch = await again.ended(client, made.id)
        assert batch.status == "completed" and batch.request_counts.completed == 60
        assert len(await read_lines(client, batch.output_file_id)) == 60
        blobs = {path.name for path in (state_dir / "files").iterdir()}
        assert blobs == {batch.input_file_id, batch.output_file_id, "notes.txt"}
        await again.close()


async def test_what_expired_or_was_cancelled_meanwhile_ends_so(
    open_site: Any, request_lines: Any, submit: Any, read_lines: Any, tokenizer: Any
) -> None:
    first = await open_site(engine=Script(tokenizer, good=0))
    client = first.client()
    made = await submit(client, request_lines(3))
    while not first.engine.prompts:
        await asyncio.sleep(0.01)
    await first.close()
    first.clock.now += 25 * 3600

    second = await open_site(engine=Script(tokenizer, good=100), clock=first.clock)
    client = second.client()
    batch = await second.ended(client, made.id)

    assert batch.status == "expired"
    left = await read_lines(client, batch.error_file_id)
    assert [row["error"]["code"] for row in left.values()] == ["batch_expired"] * 3
    assert second.engine.prompts == []


async def test_callers_of_before_are_callers_of_now(
    open_site: Any, request_lines: Any, submit: Any, tokenizer: Any
) -> None:
    first = await open_site(keys="ann:old\n", engine=Script(tokenizer, good=0))
    made = await submit(first.client("old"), request_lines(2))
    await first.close()

    second = await open_site(
        keys="ann:new\nbob:b\n", engine=Script(tokenizer, good=9), clock=first.clock
    )
    batch = await second.ended(second.client("new"), made.id)

    assert batch.status == "completed"
    callers = {origin.caller for origin in second.engine.origins}
    assert [(caller.identity, caller.is_background) for caller in callers] == [("ann", True)]
    assert (await second.client("b").batches.list()).data == []


async def test_a_batch_waits_for_an_engine(
    open_site: Any, request_lines: Any, submit: Any, tokenizer: Any
) -> None:
    from quire.server.errors import EngineUnavailable

    engine = Script(tokenizer, good=9)
    engine.is_unavailable = EngineUnavailable("The model is not ready: starting", 1.0)
    engine.has_room = lambda count, caller: engine.check_available() or True  # type: ignore[method-assign, func-returns-value]
    site = await open_site(engine=engine)
    client: openai.AsyncOpenAI = site.client()
    made = await submit(client, request_lines(3))
    await asyncio.sleep(0.4)
    assert (await client.batches.retrieve(made.id)).status == "in_progress"
    assert engine.prompts == []

    engine.is_unavailable = None

    assert (await site.ended(client, made.id)).request_counts.completed == 3

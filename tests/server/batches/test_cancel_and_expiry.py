"""Batches that are cancelled or expire: what is done is kept, and the rest is told."""

import asyncio
from typing import Any

import pytest
from scripted_server import FakeEngine

from quire.server.batches.line_table import Line
from quire.server.batches.schema import BatchRequest


async def test_a_cancelled_batch_keeps_what_is_done(
    open_site: Any, request_lines: Any, submit: Any, read_lines: Any, tokenizer: Any
) -> None:
    site = await open_site(engine=_Stuck(tokenizer, good=3))
    client = site.client()
    made = await submit(client, request_lines(50))
    while (await client.batches.retrieve(made.id)).request_counts.completed < 3:
        await asyncio.sleep(0.01)

    cancelling = await client.batches.cancel(made.id)
    batch = await site.ended(client, made.id)

    assert cancelling.status in ("cancelling", "cancelled") and cancelling.cancelling_at
    assert batch.status == "cancelled" and batch.cancelled_at
    assert batch.request_counts.to_dict() == {"total": 50, "completed": 3, "failed": 47}
    done = await read_lines(client, batch.output_file_id)
    left = await read_lines(client, batch.error_file_id)
    assert set(done) | set(left) == {f"request-{index}" for index in range(50)}
    assert {row["error"]["code"] for row in left.values()} == {"batch_cancelled"}
    assert {row["response"] for row in left.values()} == {None}
    assert site.engine.num_live == 0, "what ran was aborted"
    assert (await client.batches.cancel(made.id)).status == "cancelled"


@pytest.mark.parametrize("goes_on", [True, False], ids=["here", "after a restart"])
async def test_a_batch_that_is_cancelled_before_it_began_has_no_lines(
    open_site: Any, request_lines: Any, tokenizer: Any, goes_on: bool
) -> None:
    site = await open_site()
    client = site.client()
    file = await client.files.create(file=("a", request_lines(3)), purpose="batch")
    wanted = BatchRequest(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )

    def check_some(store: Any) -> str:
        batch = store.batches.create(wanted, "", None)
        (row,) = store.batches.unfinished()
        store.batches.begin_checking(row.number)
        store.lines.add(row.number, [Line(1, "request-0", 0, 10), Line(2, "request-1", 10, 10)])
        store.batches.cancel(batch["id"], "")
        if goes_on:
            assert store.batches.begin(row.number, "tiny") == "cancelling"
        return str(batch["id"])

    batch_id = await site.service.store.run(check_some)
    await site.service.runner.look()
    batch = await site.ended(client, batch_id)

    assert batch.status == "cancelled" and batch.in_progress_at is None
    assert batch.request_counts.to_dict() == {"total": 0, "completed": 0, "failed": 0}
    assert batch.output_file_id is batch.error_file_id is None
    assert site.engine.streams == []


async def test_a_batch_can_be_made_and_cancelled_while_the_daemon_drains(
    open_site: Any, request_lines: Any, submit: Any, tokenizer: Any
) -> None:
    site = await open_site(engine=_Stuck(tokenizer, good=0))
    client = site.client()
    running = await submit(client, request_lines(3))
    while not site.engine.num_live:
        await asyncio.sleep(0.01)
    await site.service.runner.stop()

    waiting = await submit(client, request_lines(3))

    assert waiting.status == "validating"
    assert (await client.batches.cancel(running.id)).status == "cancelling"
    assert (await client.batches.cancel(waiting.id)).status == "cancelling"


async def test_after_a_day_what_is_not_done_has_expired(
    open_site: Any, request_lines: Any, submit: Any, read_lines: Any, tokenizer: Any
) -> None:
    site = await open_site(engine=_Stuck(tokenizer, good=2))
    client = site.client()
    made = await submit(client, request_lines(9))
    while (await client.batches.retrieve(made.id)).request_counts.completed < 2:
        await asyncio.sleep(0.01)

    site.clock.now += 24 * 3600 - 1
    await site.service.runner.look()
    assert (await client.batches.retrieve(made.id)).status == "in_progress"
    site.clock.now += 1
    await site.service.runner.look()
    batch = await site.ended(client, made.id)

    assert batch.status == "expired" and batch.expired_at == int(site.clock.now)
    assert len(await read_lines(client, batch.output_file_id)) == 2
    left = await read_lines(client, batch.error_file_id)
    assert [row["error"]["code"] for row in left.values()] == ["batch_expired"] * 7
    assert site.engine.num_live == 0


class _Stuck(FakeEngine):
    """Answers the first contexts, and the others never."""

    def __init__(self, tokenizer: Any, good: int) -> None:
        super().__init__(script=self._say)
        self._says = [*tokenizer.encode("Hi", add_special_tokens=False), tokenizer.eos_token_id]
        self._good = good

    def _say(self, context: Any) -> list[int]:
        self._good -= 1
        return self._says if self._good >= 0 else []

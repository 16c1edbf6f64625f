"""Live requests come first: a batch takes the places that they leave, and neither their queue nor
their key's share."""

import asyncio
from collections.abc import Sequence
from typing import Any

from scripted_server import FakeEngine, FakeStream
from starlette.datastructures import State

from quire.config.limits import LIMITS
from quire.pipelines.core.context import TextContext
from quire.server.batches.gate import Gate
from quire.server.batches.service import background_places
from quire.server.capacity import Capacity
from quire.server.engine import Caller, Origin, TokenStream
from quire.server.metrics import Metrics

MAX_BATCH_SIZE, MAX_QUEUE_SIZE = 8, 4


class BoundedEngine(FakeEngine):
    """Admits as the real engine client does; what it says takes a while."""

    def __init__(self, tokenizer: Any, settings: Any) -> None:
        says = tokenizer.encode("one two three four five", add_special_tokens=False)
        super().__init__(script=lambda context: [*says, tokenizer.eos_token_id], delay=0.005)
        self.metrics = Metrics("tiny")
        self.capacity = Capacity(
            MAX_BATCH_SIZE + MAX_QUEUE_SIZE,
            settings.max_concurrency_per_key,
            self.metrics,
            background=background_places(settings),
        )
        self.most_background = 0
        self.live_starts: list[int] = []
        """Contexts of batches in the engine when a live request came."""

    def check_room(self, caller: Caller | None) -> None:
        self.capacity.check(1, caller)

    def has_room(self, count: int, caller: Caller | None) -> bool:
        return self.capacity.has_room(count, caller)

    @property
    def num_background(self) -> int:
        return sum(
            not stream.is_closed and stream.context.priority == LIMITS.priority
            for stream in self.streams
        )

    def submit(self, contexts: Sequence[TextContext], origin: Origin) -> list[TokenStream]:
        self.capacity.check(len(contexts), origin.caller)
        is_background = origin.caller is not None and origin.caller.is_background
        assert is_background == (contexts[0].priority == LIMITS.priority)
        if not is_background:
            self.live_starts.append(self.num_background)
        self.capacity.add(len(contexts), origin.caller)
        streams = [_Stream(context, self, origin.caller) for context in contexts]
        self.streams += streams
        self.most_background = max(self.most_background, self.num_background)
        return list(streams)


class _Stream(FakeStream):
    def __init__(self, context: TextContext, engine: BoundedEngine, caller: Caller | None) -> None:
        super().__init__(context, engine)
        self._bounded, self._caller = engine, caller

    def close(self, *, stopped: bool = False) -> None:
        if not self.is_closed:
            self._bounded.capacity.remove(self._caller)
        super().close(stopped=stopped)


async def test_live_requests_are_never_refused_for_a_batch(
    open_site: Any, request_lines: Any, submit: Any, tokenizer: Any
) -> None:
    site = await open_site(max_batch_size=MAX_BATCH_SIZE, max_queue_size=MAX_QUEUE_SIZE)
    engine = site.app.state.engine = BoundedEngine(tokenizer, site.app.state.settings)
    client = site.client()
    made = await submit(client, request_lines(60))
    while not engine.most_background:
        await asyncio.sleep(0.005)

    async def ask() -> str | None:
        reply = await client.completions.create(model="tiny", prompt="Hi", max_tokens=4)
        return reply.choices[0].finish_reason

    # As many at once as the server admits of live requests, again and again.
    for _ in range(2):
        waves = await asyncio.gather(*[ask() for _ in range(MAX_BATCH_SIZE + MAX_QUEUE_SIZE)])
        assert set(waves) == {"length"}
    during = await client.batches.retrieve(made.id)
    batch = await site.ended(client, made.id, seconds=30)

    assert during.status == "in_progress", "the batch was still there to be in the way"
    assert batch.request_counts.to_dict() == {"total": 60, "completed": 60, "failed": 0}
    assert 1 <= engine.most_background <= background_places(site.app.state.settings) == 6
    assert engine.num_live == 0


async def test_a_batch_waits_while_live_requests_take_every_place(
    open_site: Any, request_lines: Any, submit: Any, tokenizer: Any
) -> None:
    site = await open_site(max_batch_size=MAX_BATCH_SIZE, max_queue_size=MAX_QUEUE_SIZE)
    engine = site.app.state.engine = BoundedEngine(tokenizer, site.app.state.settings)
    engine.script = lambda context: []
    client = site.client()
    live = [
        asyncio.create_task(client.completions.create(model="tiny", prompt="Hi", max_tokens=99))
        for _ in range(background_places(site.app.state.settings))
    ]
    while engine.num_live < len(live):
        await asyncio.sleep(0.005)

    made = await submit(client, request_lines(5))
    await asyncio.sleep(0.3)
    waiting = await client.batches.retrieve(made.id)
    assert (waiting.status, engine.num_background) == ("in_progress", 0)

    says = tokenizer.encode("Hi", add_special_tokens=False)
    engine.script = lambda context: [*says, tokenizer.eos_token_id]
    for task in live:
        task.cancel()
    batch = await site.ended(client, made.id)
    assert batch.request_counts.completed == 5


async def test_a_batch_leaves_its_owners_share_alone(
    open_site: Any, request_lines: Any, submit: Any, tokenizer: Any
) -> None:
    site = await open_site(keys="ann:a\n", max_batch_size=MAX_BATCH_SIZE, max_concurrency_per_key=2)
    engine = site.app.state.engine = BoundedEngine(tokenizer, site.app.state.settings)
    client = site.client("a")
    made = await submit(client, request_lines(15))
    while not engine.most_background:
        await asyncio.sleep(0.005)

    for _ in range(4):
        await asyncio.gather(
            *[client.completions.create(model="tiny", prompt="Hi", max_tokens=2) for _ in range(2)]
        )
    batch = await site.ended(client, made.id)

    assert batch.request_counts.completed == 15
    assert any(engine.live_starts), "live requests ran beside the batch"
    assert engine.most_background == 2


async def test_callers_and_batches_take_turns(
    open_site: Any, request_lines: Any, submit: Any, tokenizer: Any
) -> None:
    site = await open_site(keys="ann:a\nbob:b\n", max_batch_size=MAX_BATCH_SIZE)
    site.app.state.engine = BoundedEngine(tokenizer, site.app.state.settings)
    ann, bob = site.client("a"), site.client("b")
    long = await submit(ann, request_lines(200))
    while not site.app.state.engine.most_background:
        await asyncio.sleep(0.005)
    before = (await ann.batches.retrieve(long.id)).request_counts.completed
    other, short = await submit(ann, request_lines(10)), await submit(bob, request_lines(10))

    await site.ended(bob, short.id)
    await site.ended(ann, other.id)

    after = (await ann.batches.retrieve(long.id)).request_counts.completed
    assert after - before < 100
    await ann.batches.cancel(long.id)
    await site.ended(ann, long.id)


async def test_the_gate_gives_turns_and_takes_back_what_nobody_waits_for() -> None:
    state = State({"engine": FakeEngine(script=lambda context: [])})
    gate = Gate(state, 2)
    ann, bob = Caller("ann", "ann", True), Caller("bob", "bob", True)
    passed: list[str] = []

    async def line(name: str, owner: Caller) -> None:
        await gate.enter(owner)
        passed.append(name)

    tasks = [asyncio.create_task(line(f"a{number}", ann)) for number in range(5)]
    tasks += [asyncio.create_task(line(f"b{number}", bob)) for number in range(3)]
    await asyncio.sleep(0.05)
    assert passed == ["a0", "b0"] and gate.num_inside == 2
    tasks[1].cancel()
    for _ in range(6):
        gate.leave()
        await asyncio.sleep(0.05)
    assert passed[2:] in (["a2", "b1", "a3", "b2", "a4"], ["b1", "a2", "b2", "a3", "a4"])

    state.engine.room = 0
    gate.num_inside = 0
    late = asyncio.create_task(line("late", ann))
    await asyncio.sleep(0.05)
    state.engine.room = 1
    while not gate.num_inside:
        await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait({late})
    assert gate.num_inside == 1 - late.cancelled()

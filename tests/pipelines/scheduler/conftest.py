"""A deterministic simulation of the engine: one seed draws the limits, the workload and the faults.

The model is a hash, so any schedule's output can be checked against a sequential oracle, and the
KV of a position is the hash of the history up to it, so each page can be checked for exactly the
right content before it is read: in a group with a window that of the window, and nothing before it.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
import numpy as np
import pytest

from quire.pipelines.core.context import ContextWire, TextContext
from quire.pipelines.core.messages import StepOutput
from quire.pipelines.core.plan import PlanRow, StepPlan, StepResult
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus
from quire.pipelines.kv_cache.page_group import PageGroup, first_page, most_pages
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.scheduler.queue import AGING_SECONDS_PER_LEVEL
from quire.pipelines.worker.engine import Engine

VOCABULARY = 48
EOS, STOP = 0, 1
MASK = 2**64 - 1
NAN, ZERO = -1, -2
"""KV values that no history hashes to."""


def extend(state: int, token: int) -> int:
    """The hash of a history with one more token."""
    state = ((state ^ (token + 1)) * 0x9E3779B97F4A7C15) & MASK
    return state ^ (state >> 29)


def root(salt: bytes) -> int:
    return int.from_bytes(sha256(salt).digest()[:8])


def sample(state: int, params: SamplingParams, choice: int, position: int, below_min: bool) -> int:
    noise = extend(extend(extend(state, params.seed), choice), position)
    first = 2 if below_min else 0
    return first + (noise >> 20) % (VOCABULARY - first)


@dataclass
class Request:
    """A request, what must come out of it, and what its client knows so far."""

    wire: ContextWire
    arrival: float
    oracle: list[int]
    last: TextGenerationStatus
    rejected: bool
    cancel_after: float | None = None
    poisoned_at: int | None = None
    """How many tokens come before the one whose logits are NaN."""
    committed: list[int] = field(default_factory=list)
    status: str = "new"
    key: tuple[float, int] = (0.0, 0)
    cached: int | None = None
    first_start: int | None = None


def run_alone(wire: ContextWire) -> tuple[list[int], TextGenerationStatus]:
    """The oracle: one token after the other, nothing kept but the hash."""
    context = TextContext.from_wire(wire)
    state = root(wire.cache_salt)
    for token in context.tokens.prompt.tolist():
        state = extend(state, token)
    while not context.is_done:
        below_min = context.is_below_min_new_tokens
        token = sample(state, wire.params, wire.choice, len(context.tokens), below_min)
        context.update(token)
        state = extend(state, token)
    return context.tokens.generated.tolist(), context.status


class HashRunner:
    """Runs plans on a KV of hashes, and refuses a plan that breaks a promise of the scheduler."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation
        self._config = simulation.config
        self._kv = [
            [[ZERO] * self._config.page_size for _ in range(group.num_pages)]
            for group in self._config.page_groups
        ]
        self._expected: dict[int, list[int]] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        self._simulation.check_plan(plan)
        self._check_writes(plan)
        tokens: list[int] = []
        errors: dict[int, str] = {}
        for row in plan.rows:
            state = self._write(row)
            if row.samples:
                request = self._simulation.requests[row.context.request_id]
                if row.context.tokens.generated_length == request.poisoned_at:
                    errors[len(tokens)] = "the logits hold NaN"
                    for kv, table in zip(self._kv, row.tables, strict=True):
                        for page in table[row.start // self._config.page_size :]:
                            kv[page] = [NAN] * self._config.page_size
                tokens.append(-1 if len(tokens) in errors else self._sample(row, state))
        return StepResult(np.array(tokens, dtype=np.int32), errors=errors)

    def scrub(self, pages: Sequence[Sequence[int]]) -> None:
        for kv, own in zip(self._kv, pages, strict=True):
            for page in own:
                kv[page] = [ZERO] * self._config.page_size

    def _sample(self, row: PlanRow, state: int) -> int:
        context = row.context
        below_min = context.is_below_min_new_tokens
        return sample(state, context.params, context.choice, len(context.tokens), below_min)

    def _check_writes(self, plan: StepPlan) -> None:
        size = self._config.page_size
        for index, group in enumerate(self._config.page_groups):
            read = [first_page(group.window, row.start, size) for row in plan.rows]
            holders = Counter(
                page
                for row, first in zip(plan.rows, read, strict=True)
                for page in row.tables[index][first:]
            )
            for row in plan.rows:
                table = row.tables[index]
                assert len(table) * size >= row.start + row.count, "too few pages"
                written = table[row.start // size : -(-(row.start + row.count) // size)]
                assert all(holders[page] == 1 for page in written), "a shared page is written"

    def _write(self, row: PlanRow) -> int:
        """Check what the row reads, write its KV; returns the hash of its last position."""
        context, size = row.context, self._config.page_size
        expected = self._expected.setdefault(context.request_id, [root(context.cache_salt)])
        for token in context.tokens.all[len(expected) - 1 :].tolist():
            expected.append(extend(expected[-1], token))
        active = context.tokens.active.tolist()
        assert len(active) == row.count
        for group, kv, table in zip(self._config.page_groups, self._kv, row.tables, strict=True):
            first = first_page(group.window, row.start, size)
            stored = [value for page in table[first:] for value in kv[page]]
            assert NAN not in stored, "a page was not scrubbed"
            seen = max(first * size, row.start + 1 - (group.window or row.start + 1))
            found = stored[seen - first * size : row.start - first * size]
            assert found == expected[seen + 1 : row.start + 1], "pages hold another history"
            state = expected[row.start]
            for position, token in enumerate(active, row.start):
                state = extend(state, token)
                kv[table[position // size]][position % size] = state
        return state


class Simulation:
    """One run. Any broken promise raises."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        draw = self.random
        page_size = draw.choice([1, 2, 4, 8])
        windows = draw.choice([(None,)] * 4 + [(None, 1), (None, 6), (7,), (None, 4, 20)])
        self.config = SchedulerConfig(
            page_groups=tuple(
                PageGroup(draw.choice([3, 5, 8, 16, 64]), window) for window in windows
            ),
            page_size=page_size,
            max_batch_size=draw.choice([1, 2, 4, 8, 16]),
            max_batch_input_tokens=page_size + draw.choice([0, 1, 5, 12, 40]),
            max_length=96,
            enable_prefix_caching=draw.random() < 0.8,
            itl_target=random.Random(seed).choice([None, 1e-12, 1.0]),  # without a draw
        )
        self.faults = {
            name: draw.choice([0.0, rate])
            for name, rate in {"crash": 0.01, "lost": 0.01, "cancel": 0.3, "poison": 0.2}.items()
        }
        self.counts: Counter[str] = Counter()
        self.now = 0.0
        self._span = draw.choice([4.0, 15.0, 60.0])
        self.requests: dict[int, Request] = {}
        for number in range(1, 31):
            self.requests[number] = self._draw_request(number)
        self._epoch = 0
        self._bound = 0
        self._start_worker()

    def _draw_request(self, number: int) -> Request:
        draw = self.random
        wire = self._draw_wire(number)
        if number > 1 and draw.random() < 0.15:
            twin = self.requests[draw.randrange(1, number)].wire
            wire = msgspec.structs.replace(twin, request_id=number)
        oracle, last = run_alone(wire)
        context = TextContext.from_wire(wire)
        tokens = context.tokens.prompt_length + context.max_new_tokens - 1
        sizes = (self.config.page_size, self.config.max_batch_input_tokens)
        fits = all(
            most_pages(group.window, tokens, *sizes) <= group.num_pages
            for group in self.config.page_groups
        )
        return Request(
            wire,
            arrival=draw.uniform(0, self._span),
            oracle=oracle,
            last=last,
            rejected=not fits or wire.max_length > self.config.max_length,
            cancel_after=draw.uniform(0, 20) if draw.random() < self.faults["cancel"] else None,
            poisoned_at=draw.randrange(6) if draw.random() < self.faults["poison"] else None,
        )

    def _draw_wire(self, number: int) -> ContextWire:
        draw, config = self.random, self.config
        group = config.page_groups[0]
        pages = group.num_pages if group.window is None else config.max_length
        room = min(config.max_length - 1, pages * config.page_size)
        shared = [7 * place % VOCABULARY for place in range(draw.randrange(room))]
        prompt = shared[: draw.choice([3, 10, room])] + draw.choices(range(VOCABULARY), k=2)
        fitting = max(1, room - len(prompt))
        params = SamplingParams(
            seed=draw.randrange(5),
            max_new_tokens=draw.choice([None, 1, 4, min(20, fitting), fitting, fitting]),
            min_new_tokens=draw.choice([0, 0, 12]),
            stop_token_ids=draw.choice([(), (STOP,)]),
        )
        context = TextContext(
            number,
            np.array(prompt[: config.max_length - 1], dtype=np.int32),
            params,
            max_length=draw.choice([config.max_length] * 9 + [config.max_length + 1]),
            choice=draw.randrange(2),
            eos_token_ids=(EOS,),
            priority=draw.choice([0, 0, 0, 1, -1, -2]),
            cache_salt=draw.choice([b"", b"", b"tenant"]),
        )
        return context.to_wire()

    def run(self) -> Counter[str]:
        while any(request.status in ("new", "live") for request in self.requests.values()):
            self.now += self.random.choice([0.0, 0.1, 1.0])
            if self.random.random() < self.faults["crash"]:
                self._start_worker()
            if self.random.random() < 0.02:
                self._engine.reset_prefix_cache()
            self._arrive_and_cancel()
            self._step()
        stats = self._engine.stats_frame().stats
        assert (stats.running, stats.waiting, stats.used_pages) == (0, 0, 0)
        assert not self._engine.has_work
        outcomes = Counter(request.status for request in self.requests.values())
        assert outcomes.total() == len(self.requests)
        self._count_worker()
        return self.counts + outcomes

    def _live(self) -> list[int]:
        return [n for n, request in self.requests.items() if request.status == "live"]

    def _start_worker(self) -> None:
        """Throw the worker away, if there is one, and resubmit what its clients still wait for."""
        if self._epoch:
            self._count_worker()
            self.counts["crashes"] += 1
        self._epoch += 1
        self._arrivals = 0
        self._running: set[int] = set()
        self._runner = HashRunner(self)
        self._engine = Engine(self._runner, self.config, self._epoch, clock=lambda: self.now)
        live = self._live()
        for number in live:
            self.requests[number].cached = self.requests[number].first_start = None
        self._submit(live)
        self.counts["resumed"] += sum(bool(self.requests[number].committed) for number in live)

    def _count_worker(self) -> None:
        stats = self._engine.stats_frame().stats
        assert stats.prefix_hit_tokens <= stats.prefix_query_tokens
        if any(group.window for group in self.config.page_groups):
            self.counts["window preemptions"] += stats.preemptions
            self.counts["window hits"] += stats.prefix_hit_tokens
        self.counts["preemptions"] += stats.preemptions
        self.counts["hits"] += stats.prefix_hit_tokens

    def _submit(self, numbers: list[int]) -> None:
        contexts = []
        for number in numbers:
            request = self.requests[number]
            generated = np.array(request.committed, dtype=np.int32).tobytes()
            wire = msgspec.structs.replace(request.wire, generated=generated)
            raw = msgspec.msgpack.encode(wire)
            contexts.append(TextContext.from_wire(msgspec.msgpack.decode(raw, type=ContextWire)))
            aged = self.now + request.wire.priority * AGING_SECONDS_PER_LEVEL
            request.key = (aged, self._arrivals)
            request.status = "live"
            self._arrivals += 1
            history = len(wire.prompt) // 4 + len(request.oracle)
            self._bound += 3 * (history + 1)
        self._engine.submit(contexts)

    def _arrive_and_cancel(self) -> None:
        for number, request in self.requests.items():
            if request.status == "new" and request.arrival <= self.now:
                self._submit([number])
            elif (
                request.cancel_after is not None
                and request.status in ("live", "done")
                and request.arrival + request.cancel_after <= self.now
            ):
                self._engine.abort([number, number, 999])
                if request.status == "live":
                    request.status = "aborted"
                request.cancel_after = None
                self._engine.scheduler.check_integrity()

    def _step(self) -> None:
        frame = self._engine.step()
        scheduler = self._engine.scheduler
        scheduler.check_integrity()
        self._running = set(scheduler._running)
        if self.random.random() < self.faults["lost"]:
            self._start_worker()
        elif frame is not None:
            self._receive(frame)
        else:
            assert not self._live(), "live contexts, but nothing to run"

    def check_plan(self, plan: StepPlan) -> None:
        """Called when a step is about to run."""
        config = self.config
        self._bound -= 1
        assert self._bound >= 0, "no progress"
        assert 0 < plan.num_tokens <= config.max_batch_input_tokens, "token budget exceeded"
        assert len(plan.rows) <= config.max_batch_size, "batch exceeded"
        planned = [row.context.request_id for row in plan.rows]
        assert len(set(planned)) == len(planned)
        for row in plan.rows:
            end = row.start + row.count
            assert row.samples == (end == len(row.context.tokens))
            assert row.samples or end % config.page_size == 0, "a chunk is cut inside a page"
            request = self.requests[row.context.request_id]
            if request.first_start is None:
                request.first_start = row.start
        self._check_order(set(self._engine.scheduler._running), planned)

    def _check_order(self, running: set[int], planned: list[int]) -> None:
        live = {number for number in self._live() if not self.requests[number].rejected}
        assert running <= live and set(planned) <= running

        def keys(numbers: set[int]) -> list[tuple[float, int]]:
            return sorted(self.requests[number].key for number in numbers)

        before = self._running & live
        admitted, waiting = running - before, live - running
        assert not admitted or not waiting or keys(admitted)[-1] < keys(waiting)[0], "overtaken"
        preempted, kept = before - running, before & running
        assert not preempted or keys(kept)[-1] < keys(preempted)[0], "an older one was preempted"
        oldest = min(running, key=lambda number: self.requests[number].key)
        assert oldest in planned, "the oldest does not progress"
        left_out = [self._engine.scheduler._running[number] for number in running - set(planned)]
        windows = [entry.context.tokens.active_length for entry in left_out]
        assert all(length > 1 for length in windows), "a decode row is left out"

    def _receive(self, frame: StepOutput) -> None:
        assert frame.epoch == self._epoch
        names = ("request_ids", "base_index", "tokens", "statuses", "cached_tokens")
        columns = [frame.array(name).tolist() for name in names]
        for index, (number, base, token, status, cached) in enumerate(zip(*columns, strict=True)):
            request = self.requests[number]
            assert request.status == "live", f"a row of a context that is {request.status}"
            assert base == len(request.committed), "wrong base index"
            if status == TextGenerationStatus.FAILED:
                assert token == -1 and frame.errors[index]
                assert request.rejected or base == request.poisoned_at, "failed without a reason"
                request.status = "rejected" if request.rejected else "failed"
                continue
            assert not request.rejected and base != request.poisoned_at
            assert token == request.oracle[base], "another token than alone"
            request.committed.append(token)
            self._check_cached(request, cached)
            if status != TextGenerationStatus.ACTIVE:
                assert status == request.last
                request.status = "done"
            assert (request.status == "done") == (len(request.committed) == len(request.oracle))
        assert frame.stats.running + frame.stats.waiting == len(self._live())

    def _check_cached(self, request: Request, cached: int) -> None:
        assert request.first_start is not None
        assert cached == min(request.first_start, len(request.wire.prompt) // 4), "cached tokens"
        assert request.cached in (None, cached)
        request.cached = cached


@pytest.fixture(scope="session")
def simulate() -> Callable[[int], Counter[str]]:
    """Run the simulation of a seed; returns how often things happened, raises if one is wrong."""
    return lambda seed: Simulation(seed).run()

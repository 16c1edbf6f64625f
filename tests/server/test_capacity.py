"""Who is admitted, who is refused, and when a refused caller is told to come back."""

from collections.abc import Callable

import pytest

from quire.server.capacity import Capacity
from quire.server.engine import Caller
from quire.server.errors import InvalidRequest, KeyOverloaded, Overloaded
from quire.server.metrics import Metrics

ANN, BOB = Caller("ann", "ann"), Caller("bob", "bob")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock: Clock, total: int = 4, per_caller: int | None = None) -> Capacity:
    return Capacity(total, per_caller, Metrics("demo"), clock)


def refusal(capacity: Capacity, count: int = 1, caller: Caller | None = None) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        capacity.check(count, caller)
    return caught.value


def end(capacity: Capacity, clock: Clock, *, every: float, times: int) -> None:
    """A context ends and another takes its place, again and again."""
    for _ in range(times):
        clock.now += every
        capacity.remove(None)
        capacity.add(1, None)


def test_a_refusal_tells_limit_need_and_place_in_the_queue(clock: Clock) -> None:
    capacity = make(clock)
    capacity.add(4, None)
    capacity.num_running = 1

    error = refusal(capacity, 2)

    assert error.message == (
        "The queue is full: 4 requests are running or waiting, the limit is 4, this request needs "
        "2. It would be number 4 in the queue; room is expected in 1.0 s"
    )
    assert error.headers == {"retry-after": "1", "retry-after-ms": "1000", "x-queue-position": "4"}


def test_the_wait_is_measured_and_each_caller_gets_a_turn(clock: Clock) -> None:
    capacity = make(clock)
    capacity.add(4, None)
    end(capacity, clock, every=2.0, times=11)

    told = [refusal(capacity).retry_after_seconds for _ in range(3)]
    assert told == pytest.approx([2.0, 4.0, 6.0])

    clock.now += 100.0
    assert refusal(capacity, 3).retry_after_seconds == pytest.approx(36.0)
    for _ in range(10):
        last = refusal(capacity).retry_after_seconds
    assert last == 60.0


def test_fast_ends_are_told_in_milliseconds(clock: Clock) -> None:
    capacity = make(clock)
    capacity.add(4, None)
    end(capacity, clock, every=0.25, times=20)

    assert refusal(capacity).headers["retry-after-ms"] == "250"


def test_an_idle_hour_does_not_count_as_slowness(clock: Clock) -> None:
    capacity = make(clock)
    capacity.add(4, None)
    end(capacity, clock, every=0.5, times=10)
    for _ in range(4):
        capacity.remove(None)
    clock.now += 3600.0
    capacity.add(4, None)

    assert refusal(capacity).retry_after_seconds == 1.0


def test_a_key_has_its_share_and_no_more(
    clock: Clock,
) -> None:
    capacity = make(clock, per_caller=2)
    capacity.add(2, ANN)

    error = refusal(capacity, 1, ANN)
    capacity.check(2, BOB)

    assert isinstance(error, KeyOverloaded)
    assert error.message.startswith(
        "This API key has 2 requests running or waiting, the limit is 2"
    )
    assert (error.status, error.code) == (429, "key_concurrency_limit")
    assert "retry-after-ms" in error.headers and "x-queue-position" not in error.headers
    capacity.remove(ANN)
    capacity.check(1, ANN)


def test_a_key_s_wait_is_that_of_its_own_requests(clock: Clock) -> None:
    capacity = make(clock, total=100, per_caller=2)
    capacity.add(2, ANN)
    capacity.add(50, BOB)
    for _ in range(8):
        clock.now += 3.0
        capacity.remove(ANN)
        capacity.add(1, ANN)

    assert refusal(capacity, 1, ANN).retry_after_seconds == pytest.approx(3.0)


def test_nothing_is_kept_of_a_key_without_requests(clock: Clock) -> None:
    capacity = make(clock, per_caller=2)
    capacity.add(1, ANN)
    capacity.remove(ANN)

    assert not capacity._live and not capacity._turns_of


@pytest.mark.parametrize(
    ("per_caller", "option"), [(None, "max_queue_size"), (3, "max_concurrency_per_key")]
)
def test_what_can_never_fit_is_not_told_to_retry(
    clock: Clock, per_caller: int | None, option: str
) -> None:
    with pytest.raises(InvalidRequest, match=option) as caught:
        make(clock, per_caller=per_caller).check(5, ANN)

    assert caught.value.param == "n"


def test_refusals_are_counted_by_reason(clock: Clock, value_of: Callable[..., float]) -> None:
    metrics = Metrics("demo")
    capacity = Capacity(4, 2, metrics, clock)
    capacity.add(2, ANN)
    refusal(capacity, 1, ANN)
    capacity.add(2, BOB)
    refusal(capacity)

    for reason in ("max_num_queued_reqs", "max_concurrency_per_key"):
        assert value_of(metrics, "vllm:admission_rejections_total", reason=reason) == 1


def test_room_is_what_check_would_let_pass(clock: Clock) -> None:
    capacity = make(clock, total=4, per_caller=2)
    capacity.add(1, ANN)

    assert [capacity.has_room(count, ANN) for count in (1, 2)] == [True, False]
    assert [capacity.has_room(count, BOB) for count in (2, 3)] == [True, False]
    assert [capacity.has_room(count, None) for count in (3, 4)] == [True, False]


def test_a_batch_takes_what_live_requests_leave(clock: Clock) -> None:
    batch = Caller("ann", "ann", is_background=True)
    capacity = Capacity(4, None, Metrics("demo"), clock, background=3)
    capacity.add(2, None)

    assert capacity.has_room(1, batch) and not capacity.has_room(2, batch)
    assert refusal(capacity, 2, batch).message == "Live requests leave no room for a batch's"
    capacity.add(1, batch)
    assert not capacity.has_room(1, batch)
    capacity.check(2, None)
    capacity.add(2, None)

    assert "4 requests are running or waiting" in refusal(capacity, 1, None).message


def test_a_batch_takes_few_places_while_there_are_live_requests(clock: Clock) -> None:
    batch = Caller("", None, is_background=True)
    capacity = Capacity(64, None, Metrics("demo"), clock, background=12)
    capacity.add(1, None)

    assert capacity.has_room(2, batch)
    capacity.add(2, batch)
    assert not capacity.has_room(1, batch)
    capacity.remove(None)
    clock.now += 1.9
    assert not capacity.has_room(1, batch)
    clock.now += 0.2

    assert capacity.has_room(10, batch) and not capacity.has_room(11, batch)


def test_a_batchs_large_request_runs_when_nothing_else_does(clock: Clock) -> None:
    batch = Caller("", None, is_background=True)
    capacity = Capacity(8, None, Metrics("demo"), clock, background=3)

    capacity.check(6, batch)
    capacity.add(1, None)
    refusal(capacity, 6, batch)
    capacity.remove(None)
    capacity.check(6, batch)

    with pytest.raises(InvalidRequest, match="at most 8 at once"):
        capacity.check(9, batch)


def test_a_key_and_its_batches_have_a_share_each(
    clock: Clock, value_of: Callable[..., float]
) -> None:
    metrics = Metrics("demo")
    capacity = Capacity(8, 2, metrics, clock, background=6)
    batch = Caller("ann", "ann", is_background=True)
    capacity.add(2, batch)

    capacity.check(2, ANN)
    with pytest.raises(KeyOverloaded):
        capacity.check(1, batch)

    assert (
        value_of(metrics, "vllm:admission_rejections_total", reason="max_concurrency_per_key") == 0
    )

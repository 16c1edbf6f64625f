"""`EngineClient`: admission, exactly-once commits, resume under a new epoch, ends."""

import asyncio
import time

import msgspec
import numpy as np
import pytest

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities, PromptLogProbabilities
from quire.pipelines.core.messages import Abort, EngineStats, Ready, StepOutput, Submit
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus as Status
from quire.server import timelines
from quire.server.engine import Caller, Origin
from quire.server.engine_client import MAX_RESUMES, EngineClient, ProtocolError
from quire.server.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
    Overloaded,
)
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics


def ready(epoch: int = 1) -> Ready:
    return Ready(epoch, 1, "cpu", "float32", 128, 64, 16, 8, 2048, [], "")


def frame(*rows: tuple[int, int, int, Status], epoch: int = 1, errors=None) -> StepOutput:
    """A step frame from (request id, base index, token, status) rows."""
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    count = len(rows)
    return StepOutput(
        epoch,
        np.array(columns[0], "<i8").tobytes(),
        np.array(columns[1], "<i4").tobytes(),
        np.array(columns[2], "<i4").tobytes(),
        np.array(columns[3], "u1").tobytes(),
        np.full(count, 2, "<i4").tobytes(),
        np.full(count, 0.5, "<f4").tobytes(),
        {},
        errors or {},
        count,
        EngineStats(),
    )


@pytest.fixture
def sent():
    return []


@pytest.fixture
def client(sent):
    client = EngineClient(4, Lifecycle(), Metrics("test"))
    client.attach(ready(), sent.append)
    return client


def context(client: EngineClient, **params) -> TextContext:
    prompt = np.array([5, 6, 7], np.int32)
    return TextContext(client.new_request_id(), prompt, SamplingParams(**params), max_length=128)


async def read(stream) -> list[int]:
    return [token async for chunk in stream for token in chunk.tokens]


async def test_tokens_are_read_once_and_in_order(client):
    (stream,) = client.submit([context(client)], Origin())
    reader = asyncio.create_task(read(stream))

    client.receive(frame((1, 0, 11, Status.ACTIVE)))
    await asyncio.sleep(0)
    client.receive(frame((1, 1, 12, Status.ACTIVE)))
    client.receive(frame((1, 2, 13, Status.END_OF_SEQUENCE)))

    assert await reader == [11, 12, 13]
    assert stream.cached_tokens == 2
    assert client.num_live == 0


async def test_admission_is_all_or_none_and_bounded(client):
    client.submit([context(client) for _ in range(3)], Origin())

    with pytest.raises(Overloaded) as refused:
        client.submit([context(client) for _ in range(2)], Origin())

    assert client.num_live == 3
    assert "limit is 4" in refused.value.message
    assert int(refused.value.headers["retry-after"]) >= 1


async def test_what_can_never_be_admitted_is_not_told_to_retry(client):
    with pytest.raises(InvalidRequest, match="at most 4") as refused:
        client.submit([context(client) for _ in range(5)], Origin())

    assert (refused.value.status, refused.value.param) == (400, "n")


async def test_nothing_is_admitted_before_the_model_is_loaded_or_while_draining(client):
    fresh = EngineClient(4, Lifecycle(), Metrics("test"))
    client.begin_drain()

    for refusing in (fresh, client):
        with pytest.raises(EngineUnavailable):
            refusing.submit([context(refusing)], Origin())


async def test_closing_a_stream_aborts_it_in_the_worker_once(client, sent):
    (stream,) = client.submit([context(client)], Origin())

    stream.close()
    stream.close()

    assert sent[1:] == [Abort(1, [1])]
    assert client.num_live == 0


async def test_late_tokens_of_a_closed_stream_are_dropped(client):
    (stream,) = client.submit([context(client)], Origin())
    stream.close()

    client.receive(frame((1, 0, 11, Status.ACTIVE)))

    assert stream.num_committed == 0


@pytest.mark.parametrize("base", [0, 2])
async def test_a_repeat_or_a_gap_is_a_protocol_error(client, base):
    client.submit([context(client)], Origin())
    client.receive(frame((1, 0, 11, Status.ACTIVE)))

    with pytest.raises(ProtocolError):
        client.receive(frame((1, base, 12, Status.ACTIVE)))


async def test_a_new_worker_gets_the_committed_history_and_the_stream_goes_on(client, sent):
    (stream,) = client.submit([context(client, seed=9)], Origin())
    reader = asyncio.create_task(read(stream))
    client.receive(frame((1, 0, 11, Status.ACTIVE)))

    client.detach()
    client.attach(ready(epoch=2), sent.append)
    client.receive(frame((1, 1, 99, Status.ACTIVE), epoch=1))
    client.receive(frame((1, 1, 12, Status.MAXIMUM_LENGTH), epoch=2))

    resumed = sent[-1]
    assert isinstance(resumed, Submit) and resumed.epoch == 2
    (wire,) = resumed.contexts
    assert np.frombuffer(wire.prompt, np.int32).tolist() == [5, 6, 7]
    assert np.frombuffer(wire.generated, np.int32).tolist() == [11]
    assert wire.params.seed == 9
    assert await reader == [11, 12]


async def test_a_context_alive_in_too_many_deaths_is_failed(client, sent):
    (stream,) = client.submit([context(client)], Origin())

    for epoch in range(2, 3 + MAX_RESUMES):
        client.detach()
        client.attach(ready(epoch), sent.append)

    with pytest.raises(GenerationFailed):
        await read(stream)
    assert client.num_live == 0


async def test_a_failed_row_ends_its_stream_only(client):
    failing, other = client.submit([context(client), context(client)], Origin())

    client.receive(
        frame((1, 0, -1, Status.FAILED), (2, 0, 21, Status.STOP_TOKEN), errors={0: "NaN logits"})
    )

    with pytest.raises(GenerationFailed, match="NaN logits"):
        await read(failing)
    assert await read(other) == [21]


async def test_wait_until_empty_returns_when_the_last_stream_ends(client):
    client.submit([context(client)], Origin())
    waiting = asyncio.create_task(client.wait_until_empty(5.0))
    await asyncio.sleep(0)
    assert not waiting.done()

    client.receive(frame((1, 0, 11, Status.END_OF_SEQUENCE)))

    await asyncio.wait_for(waiting, 1.0)


async def test_prompt_log_probabilities_that_come_again_count_once(client):
    (stream,) = client.submit([context(client, prompt_logprobs=0)], Origin())
    first, second = LogProbabilities(-1.0, {}, 1), LogProbabilities(-2.0, {}, 2)

    def told(start, *entries):
        prompt = PromptLogProbabilities(1, start, list(entries))
        return msgspec.structs.replace(frame(), prompt_logprobs=[prompt])

    client.receive(told(1, first))
    client.receive(told(1, first))
    client.receive(told(1, first, second))
    client.receive(told(2, second))
    assert stream.prompt_logprobs == [first, second]
    with pytest.raises(ProtocolError, match="request 1: prompt position 4 after 2 known ones"):
        client.receive(told(4, second))


async def test_a_deadline_ends_what_waits_and_what_runs_and_nothing_else(client, sent):
    (waiting,) = client.submit([context(client)], Origin(timeout=0.02))
    (running,) = client.submit([context(client)], Origin(timeout=0.02))
    (other,) = client.submit([context(client)], Origin(timeout=60.0))
    (late,) = client.submit([context(client)], Origin())
    client.receive(frame((2, 0, 11, Status.ACTIVE)))
    tokens = []

    with pytest.raises(DeadlineExceeded, match=r"0\.02 s"):
        await read(waiting)
    with pytest.raises(DeadlineExceeded):
        async for chunk in running:
            tokens += chunk.tokens

    assert tokens == [11]
    assert {id for message in sent if isinstance(message, Abort) for id in message.request_ids} == {
        1,
        2,
    }
    assert client.num_live == 2
    client.receive(frame((3, 0, 21, Status.STOP_TOKEN), (4, 0, 22, Status.STOP_TOKEN)))
    assert (await read(other), await read(late)) == ([21], [22])
    assert other.deadline is None


async def test_what_comes_too_late_is_not_admitted(client, sent):
    origin = Origin(timeout=0.5, arrival=time.monotonic() - 1.0)

    with pytest.raises(DeadlineExceeded) as caught:
        client.submit([context(client)], origin)

    assert (caught.value.status, caught.value.headers) == (504, {"x-should-retry": "false"})
    assert client.num_live == 0
    assert not any(isinstance(message, Submit) for message in sent)


async def test_a_deadline_counts_from_the_arrival_and_survives_a_worker(client, sent):
    (stream,) = client.submit(
        [context(client)], Origin(timeout=60.0, arrival=time.monotonic() - 59.9)
    )
    client.detach()
    began = time.monotonic()

    with pytest.raises(DeadlineExceeded):
        await read(stream)

    assert time.monotonic() - began < 30.0
    client.attach(ready(epoch=2), sent.append)
    assert not any(isinstance(message, Submit) and message.epoch == 2 for message in sent)


async def test_room_is_checked_before_anything_is_read(client):
    client.check_room(None)
    client.submit([context(client) for _ in range(4)], Origin())

    with pytest.raises(Overloaded):
        client.check_room(None)


async def test_a_timeline_tells_what_happened_and_when(client, sent):
    caller = Caller("team-a", "team-a")
    origin = Origin(request_id="r-1", caller=caller, timeout=30.0)
    _, second = client.submit([context(client, max_new_tokens=9) for _ in range(2)], origin)
    assert [choice["state"] for choice in client.timelines.find("r-1")["choices"]] == [
        "queued",
        "queued",
    ]
    client.receive(msgspec.structs.replace(frame((1, 0, 11, Status.ACTIVE)), preempted=[1, 1, 77]))
    client.detach()
    client.attach(ready(epoch=2), sent.append)
    client.receive(frame((1, 1, 12, Status.END_OF_SEQUENCE), epoch=2))

    shown = client.timelines.find("r-1")
    done, waiting = shown["choices"]
    assert (shown["api_key"], shown["timeout"]) == ("team-a", 30.0)
    assert abs(shown["arrival"] - time.time()) < 5
    assert (done["state"], done["error"], done["generated_tokens"]) == ("stop", None, 2)
    assert (done["preemptions"], done["resumes"], done["worker_epoch"]) == (2, 1, 2)
    assert (done["prompt_tokens"], done["cached_tokens"], done["max_tokens"]) == (3, 2, 9)
    times = [done[f"{name}_after"] for name in ("submitted", "first_token", "last_token", "ended")]
    assert times == sorted(times)
    # The worker's clock said half a second in the queue.
    assert done["scheduled_after"] == pytest.approx(0.5, abs=0.1)
    assert (waiting["state"], waiting["ended_after"]) == ("queued", None)
    second.close()
    assert client.timelines.find("r-1")["choices"][1]["state"] == "abort"
    assert client.timelines.find("r-2") is None


async def test_ended_timelines_are_bounded_and_hold_no_tokens(client, monkeypatch):
    monkeypatch.setattr(timelines, "MAX_KEPT_CHOICES", 5)
    for number in range(9):
        streams = client.submit([context(client)] * 1, Origin(request_id=f"r-{number}"))
        client.receive(frame((number + 1, 0, 11, Status.STOP_TOKEN)))
        assert streams[0].has_ended

    assert [request["id"] for request in client.timelines.list()] == [
        f"r-{number}" for number in (8, 7, 6, 5, 4)
    ]
    assert not client.timelines._live
    kept = [choice for entry in client.timelines._ended for choice in entry.choices]
    assert all(isinstance(choice, dict) for choice in kept)


async def test_the_latest_of_two_requests_with_one_id_is_found(client):
    for _ in range(2):
        client.submit([context(client)], Origin(request_id="same"))
    client.receive(frame((1, 0, 11, Status.STOP_TOKEN)))

    assert client.timelines.find("same")["choices"][0]["state"] == "queued"
    assert len(client.timelines.list()) == 2


def pooled_frame(request_id: int, vector: bytes | None, status=Status.MAXIMUM_LENGTH):
    embeddings = {} if vector is None else {0: vector}
    plain = frame((request_id, 0, -1, status))
    return msgspec.structs.replace(plain, embeddings=embeddings)


def pooling_context(client: EngineClient) -> TextContext:
    return TextContext(
        client.new_request_id(),
        np.array([5, 6], np.int32),
        SamplingParams(),
        max_length=128,
        pooling="mean",
    )


async def test_a_vector_ends_its_stream_and_is_no_token(client, value_of):
    (stream,) = client.submit([pooling_context(client)], Origin())
    reader = asyncio.create_task(read(stream))

    client.receive(pooled_frame(1, b"\0\0\0\0"))

    assert await reader == []
    assert stream.embedding == b"\0\0\0\0"
    assert client.num_live == 0
    assert value_of(client._metrics, "vllm:prompt_tokens_total") == 2
    assert value_of(client._metrics, "vllm:generation_tokens_total") == 0
    assert value_of(client._metrics, "vllm:request_success_total", finished_reason="length") == 1


async def test_a_text_without_its_vector_goes_to_the_next_worker_with_its_pooling(client, sent):
    client.submit([pooling_context(client)], Origin())
    client.detach()
    client.attach(ready(2), sent.append)

    assert [wire.pooling for wire in sent[-1].contexts] == ["mean"]
    assert TextContext.from_wire(sent[-1].contexts[0]).pooling == "mean"


@pytest.mark.parametrize("vector", [None, b""])
async def test_a_pooled_row_without_a_vector_is_a_protocol_error(client, vector):
    client.submit([pooling_context(client)], Origin())

    with pytest.raises(ProtocolError, match="ended without its embedding"):
        client.receive(pooled_frame(1, vector))


async def test_room_is_told_without_a_refusal(client, value_of):
    client.submit([context(client) for _ in range(3)], Origin())

    assert client.has_room(1, None) and not client.has_room(2, None)
    rejections = "vllm:admission_rejections_total"
    assert value_of(client._metrics, rejections, reason="max_num_queued_reqs") == 0

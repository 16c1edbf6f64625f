"""`EngineClient`: admission, exactly-once commits, resume under a new epoch, ends."""

import asyncio

import msgspec
import numpy as np
import pytest

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities, PromptLogProbabilities
from quire.pipelines.core.messages import Abort, EngineStats, Ready, StepOutput, Submit
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus as Status
from quire.server.engine_client import MAX_RESUMES, EngineClient, ProtocolError
from quire.server.errors import EngineUnavailable, GenerationFailed, InvalidRequest, Overloaded
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
    (stream,) = client.submit([context(client)])
    reader = asyncio.create_task(read(stream))

    client.receive(frame((1, 0, 11, Status.ACTIVE)))
    await asyncio.sleep(0)
    client.receive(frame((1, 1, 12, Status.ACTIVE)))
    client.receive(frame((1, 2, 13, Status.END_OF_SEQUENCE)))

    assert await reader == [11, 12, 13]
    assert stream.cached_tokens == 2
    assert client.num_live == 0


async def test_admission_is_all_or_none_and_bounded(client):
    client.submit([context(client) for _ in range(3)])

    with pytest.raises(Overloaded) as refused:
        client.submit([context(client) for _ in range(2)])

    assert client.num_live == 3
    assert "limit is 4" in refused.value.message
    assert int(refused.value.headers["retry-after"]) >= 1


async def test_what_can_never_be_admitted_is_not_told_to_retry(client):
    with pytest.raises(InvalidRequest, match="at most 4") as refused:
        client.submit([context(client) for _ in range(5)])

    assert (refused.value.status, refused.value.param) == (400, "n")


async def test_nothing_is_admitted_before_the_model_is_loaded_or_while_draining(client):
    fresh = EngineClient(4, Lifecycle(), Metrics("test"))
    client.begin_drain()

    for refusing in (fresh, client):
        with pytest.raises(EngineUnavailable):
            refusing.submit([context(refusing)])


async def test_closing_a_stream_aborts_it_in_the_worker_once(client, sent):
    (stream,) = client.submit([context(client)])

    stream.close()
    stream.close()

    assert sent[1:] == [Abort(1, [1])]
    assert client.num_live == 0


async def test_late_tokens_of_a_closed_stream_are_dropped(client):
    (stream,) = client.submit([context(client)])
    stream.close()

    client.receive(frame((1, 0, 11, Status.ACTIVE)))

    assert stream.num_committed == 0


@pytest.mark.parametrize("base", [0, 2])
async def test_a_repeat_or_a_gap_is_a_protocol_error(client, base):
    client.submit([context(client)])
    client.receive(frame((1, 0, 11, Status.ACTIVE)))

    with pytest.raises(ProtocolError):
        client.receive(frame((1, base, 12, Status.ACTIVE)))


async def test_a_new_worker_gets_the_committed_history_and_the_stream_goes_on(client, sent):
    (stream,) = client.submit([context(client, seed=9)])
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
    (stream,) = client.submit([context(client)])

    for epoch in range(2, 3 + MAX_RESUMES):
        client.detach()
        client.attach(ready(epoch), sent.append)

    with pytest.raises(GenerationFailed):
        await read(stream)
    assert client.num_live == 0


async def test_a_failed_row_ends_its_stream_only(client):
    failing, other = client.submit([context(client), context(client)])

    client.receive(
        frame((1, 0, -1, Status.FAILED), (2, 0, 21, Status.STOP_TOKEN), errors={0: "NaN logits"})
    )

    with pytest.raises(GenerationFailed, match="NaN logits"):
        await read(failing)
    assert await read(other) == [21]


async def test_wait_until_empty_returns_when_the_last_stream_ends(client):
    client.submit([context(client)])
    waiting = asyncio.create_task(client.wait_until_empty(5.0))
    await asyncio.sleep(0)
    assert not waiting.done()

    client.receive(frame((1, 0, 11, Status.END_OF_SEQUENCE)))

    await asyncio.wait_for(waiting, 1.0)


async def test_prompt_log_probabilities_that_come_again_count_once(client):
    (stream,) = client.submit([context(client, prompt_logprobs=0)])
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

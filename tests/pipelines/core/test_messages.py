import msgspec
import numpy as np
import pytest

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.core.messages import (
    Abort,
    EngineStats,
    Fatal,
    FromWorker,
    Progress,
    Ready,
    ResetPrefixCache,
    StepOutput,
    Submit,
    ToWorker,
)
from quire.pipelines.core.sampling_params import SamplingParams

COLUMNS = {
    "request_ids": [1, 2**62],
    "base_index": [0, 2**31 - 1],
    "tokens": [-1, 2**31 - 1],
    "statuses": [4, 0],
    "cached_tokens": [0, 128],
    "queue_seconds": [0.0, 0.5],
}
DTYPES = ["<i8", "<i4", "<i4", "u1", "<i4", "<f4"]


def step_output() -> StepOutput:
    arrays = {
        name: np.array(values, dtype=dtype).tobytes()
        for (name, values), dtype in zip(COLUMNS.items(), DTYPES, strict=True)
    }
    return StepOutput(
        epoch=3,
        **arrays,
        logprobs={1: LogProbabilities(-0.25, {9: -0.25, 4: -1.5})},
        errors={0: "NaN"},
        input_tokens=7,
        stats=EngineStats(running=2, step_seconds=0.5),
    )


def to_worker() -> list[ToWorker]:
    context = TextContext(1, np.array([1, 2], dtype=np.int32), SamplingParams(seed=4), max_length=9)
    return [Submit(1, [context.to_wire()]), Abort(1, [4, 2**62]), ResetPrefixCache(1)]


def from_worker() -> list[FromWorker]:
    ready = Ready(1, 99, "cpu", "float32", 64, 8, 16, 4, 128, [("weights", 10**12)], "table")
    return [Progress(1, "loading", 0.5), ready, Fatal(1, 3, "no weights"), step_output()]


@pytest.mark.parametrize("message", to_worker(), ids=lambda message: type(message).__name__)
def test_messages_to_the_worker_survive_the_wire(message: ToWorker) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToWorker) == message


@pytest.mark.parametrize("message", from_worker(), ids=lambda message: type(message).__name__)
def test_messages_from_the_worker_survive_the_wire(message: FromWorker) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=FromWorker) == message


def test_step_arrays_read_back_with_their_types() -> None:
    raw = msgspec.msgpack.encode(step_output())
    frame = msgspec.msgpack.decode(raw, type=StepOutput)
    for (name, values), dtype in zip(COLUMNS.items(), DTYPES, strict=True):
        assert frame.array(name).dtype == np.dtype(dtype)
        assert frame.array(name).tolist() == values


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x92\xa5step1"])
def test_garbage_is_refused_with_a_typed_error(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(raw, type=FromWorker)

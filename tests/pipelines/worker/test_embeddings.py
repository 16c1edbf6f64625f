"""Vectors of whole engines: transformers' own, and the same bits however texts meet in steps."""

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_models import expected
from numpy.typing import NDArray
from parity.families.encoders import make_encoder

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.core.context import Pooling, TextContext
from quire.pipelines.core.messages import StepOutput
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus
from quire.pipelines.model_task import encoder_of
from quire.pipelines.worker.engine import Engine, WorkerEngine
from quire.pipelines.worker.start import start_engine
from quire.pipelines.worker.start_encoder import StartedEncoder, start_encoder

POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "last")
rng = random.Random(5)
PREFIX = rng.choices(range(3, 97), k=48)
TEXTS = [rng.choices(range(3, 97), k=length) for length in (1, 33, 100, 65, 140)]
TEXTS += [PREFIX + text[:9] for text in TEXTS]


def context(number: int, text: list[int], pooling: Pooling | None, length: int = 150) -> Any:
    ids = np.array(text, np.int32)
    return TextContext(number, ids, SamplingParams(), max_length=length, pooling=pooling)


def run(engine: WorkerEngine, contexts: list[TextContext]) -> dict[int, bytes]:
    """The vectors, and that each comes once, ends its context and has no token."""
    engine.submit(contexts)
    found: dict[int, bytes] = {}
    while engine.has_work:
        frame = engine.step()
        if frame is not None:
            for row, vector in frame.embeddings.items():
                number = int(frame.array("request_ids")[row])
                assert number not in found
                assert frame.array("tokens")[row] == -1
                assert frame.array("statuses")[row] == TextGenerationStatus.MAXIMUM_LENGTH
                found[number] = vector
            assert len(frame.embeddings) == len(frame.array("request_ids"))
    return found


def vectors(engine: WorkerEngine, pooling: Pooling, texts: list[list[int]]) -> list[bytes]:
    found = run(engine, [context(n, text, pooling) for n, text in enumerate(texts)])
    return [found[number] for number in range(len(texts))]


def unit(vector: bytes) -> NDArray[np.float32]:
    array = np.frombuffer(vector, "<f4")
    return array / np.linalg.norm(array)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    from parity.random_models import make_random_model

    path = tmp_path_factory.mktemp("qwen3")
    make_random_model("Qwen3").save_pretrained(path)
    (path / "tokenizer.json").write_text("{}")

    def start(**fields: Any) -> Engine:
        values = {"device": "cpu", "threads": 1, "page_size": 16, "max_length": 150, **fields}
        settings = ModelSettings.model_validate(values)
        return start_engine(settings, path, 1, lambda phase, fraction: None).engine

    start.folder = path  # type: ignore[attr-defined]
    return start


@pytest.fixture(scope="module")
def alone_of(decoder: Any) -> Callable[[Pooling], list[bytes]]:
    """The vectors of TEXTS, each of an engine that has seen no other text."""

    @functools.cache
    def find(pooling: Pooling) -> list[bytes]:
        engine = decoder(enable_prefix_caching=False)
        return [vectors(engine, pooling, [text])[0] for text in TEXTS]

    return find


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_decoders_vectors_equal_transformers(decoder: Any, pooling: Pooling) -> None:
    for text, vector in zip(TEXTS, vectors(decoder(), pooling, TEXTS), strict=True):
        np.testing.assert_allclose(unit(vector), expected(decoder.folder, text, pooling), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "fields",
    [
        {"max_batch_input_tokens": 32},
        {"max_batch_input_tokens": 16, "enable_prefix_caching": False},
        {"max_batch_input_tokens": 77, "max_batch_size": 2},
        {"max_batch_input_tokens": 48, "kv_cache_pages": 12},
        {"page_size": 32, "max_batch_input_tokens": 40},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_bits_do_not_depend_on_steps_pages_and_cache_hits(
    decoder: Any, alone_of: Any, pooling: Pooling, fields: dict[str, Any]
) -> None:
    engine, alone = decoder(**fields), alone_of(pooling)

    assert vectors(engine, pooling, TEXTS) == alone
    assert vectors(engine, pooling, TEXTS) == alone
    assert engine.scheduler.stats().used_pages == 0
    engine.scheduler.check_integrity()


def test_only_what_pools_the_last_token_reuses_pages(decoder: Any) -> None:
    hits = {}
    for pooling in POOLINGS:
        engine = decoder()
        vectors(engine, pooling, [TEXTS[2]])
        vectors(engine, pooling, [TEXTS[2]])
        hits[pooling] = engine.scheduler.stats().prefix_hit_tokens

    assert hits == {"cls": 0, "mean": 0, "last": 96}


def test_a_preempted_text_begins_its_sum_again(decoder: Any) -> None:
    engine = decoder(max_batch_input_tokens=16)
    expected_vector = vectors(decoder(), "mean", [TEXTS[4]])[0]
    text = context(0, TEXTS[4], "mean")
    engine.submit([text])
    for _ in range(3):
        engine.step()

    engine.scheduler._preempt(engine.scheduler._running[0])

    assert run(engine, []) == {0: expected_vector}


def test_texts_share_steps_with_contexts_that_generate(decoder: Any) -> None:
    engine = decoder(max_batch_input_tokens=48)
    alone = vectors(decoder(), "mean", [TEXTS[3]])[0]
    writer = context(7, TEXTS[1], None)
    writer.max_new_tokens = 9
    engine.submit([writer, context(8, TEXTS[3], "mean")])
    frames: list[StepOutput] = []
    while engine.has_work:
        if (frame := engine.step()) is not None:
            frames.append(frame)

    told = [vector for frame in frames for vector in frame.embeddings.values()]
    assert told == [alone]
    assert writer.tokens.generated_length == 9


def test_a_text_may_fill_the_context(decoder: Any) -> None:
    text = rng.choices(range(97), k=150)
    assert len(vectors(decoder(), "last", [text])) == 1
    with pytest.raises(ValueError, match="151 tokens"):
        context(1, [*text, 1], "last")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., StartedEncoder]:
    path = tmp_path_factory.mktemp("bert")
    make_encoder("BertModel").save_pretrained(path)

    def start(**fields: Any) -> StartedEncoder:
        settings = ModelSettings.model_validate({"device": "cpu", "threads": 1, **fields})
        row = encoder_of(path)
        assert row is not None
        return start_encoder(settings, path, row, 3, lambda phase, fraction: None)

    start.folder = path  # type: ignore[attr-defined]
    return start


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_encoders_vectors_equal_transformers_in_any_batch(bert: Any, pooling: Pooling) -> None:
    together = vectors(bert().engine, pooling, TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(unit(vector), expected(bert.folder, text, pooling), atol=1e-5)
    assert vectors(bert(max_batch_input_tokens=50).engine, pooling, TEXTS) == together
    assert vectors(bert(max_batch_size=1).engine, pooling, TEXTS) == together


def test_an_encoder_takes_texts_in_order_of_priority_up_to_the_budget(bert: Any) -> None:
    engine = bert(max_batch_input_tokens=70).engine
    late = context(9, TEXTS[0], "cls")
    late.priority = 1
    engine.submit([late, *(context(n, PREFIX[:30], "cls") for n in range(3))])
    first, second = engine.step(), engine.step()
    assert first is not None and second is not None
    assert first.array("request_ids").tolist() == [0, 1]
    assert (first.input_tokens, first.stats.waiting) == (60, 2)
    assert second.array("request_ids").tolist() == [2, 9]
    assert engine.step() is None


def test_an_encoder_forgets_what_is_aborted_and_refuses_what_it_cannot(bert: Any) -> None:
    engine = bert(max_length=20).engine
    engine.submit([context(1, TEXTS[0], "cls"), context(2, TEXTS[0], None)])
    engine.submit([context(3, TEXTS[1], "cls")])
    engine.abort([1, 77])
    frame = engine.step()
    assert frame is not None
    assert frame.array("request_ids").tolist() == [2, 3]
    assert frame.errors == {
        0: "the model makes embeddings and generates no text",
        1: "the model takes 20 tokens",
    }
    assert not engine.has_work


def test_states_that_are_not_finite_fail_their_text_alone(bert: Any) -> None:
    started = bert()
    states = started.model.states

    def broken(texts: list[list[int]]) -> Any:
        for index, found in enumerate(states(texts)):
            yield found * float("nan") if index == 1 else found

    started.model.states = broken
    started.engine.submit([context(n, TEXTS[n], "mean") for n in range(3)])
    frame = started.engine.step()
    assert frame.errors == {1: "the model's states are not finite"}
    assert sorted(frame.embeddings) == [0, 2]


def test_an_encoder_announces_no_pages(bert: Any) -> None:
    ready = bert(max_batch_input_tokens=100).ready(11)
    assert (ready.pid, ready.num_pages, ready.kv_cache_tokens) == (11, 0, 0)
    assert (ready.max_length, ready.max_batch_input_tokens) == (220, 220)
    rows = dict(ready.memory_plan)
    files = sum(path.stat().st_size for path in Path(bert.folder).glob("*.safetensors"))
    assert 0.8 * files < rows["weights"] < files
    assert rows["activations"] > 0
    assert "max length" in ready.memory_table


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_cache_pages": 5}, "kv_cache_pages 5: expected none, as BertModel is an encoder"),
        ({"max_length": 221}, "max_length 221 exceeds the model's positions, which are 220"),
        ({"engine": "huggingface"}, "engine huggingface: expected quire"),
        ({"device_memory_utilization": 1e-9}, "the model does not fit"),
    ],
)
def test_settings_that_an_encoder_has_no_use_for(
    bert: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bert(**fields)

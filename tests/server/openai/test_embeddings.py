"""POST /v1/embeddings over an engine whose vectors tell what it was given."""

import base64
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from quire.config.limits import LIMITS
from quire.pipelines.embedding_config import EmbeddingConfig
from quire.server.errors import EngineUnavailable, GenerationFailed, Overloaded

SIZE = 8


@pytest.fixture
def live(live: Any) -> Iterator[Any]:
    """The server of the other tests, its model made one for embeddings."""
    before = live.app.state.served
    config = EmbeddingConfig("mean", max_tokens=40)
    live.app.state.served = dataclasses.replace(before, embedding=config, hidden_size=SIZE)
    yield live
    live.app.state.served = before


def vector(ids: list[int]) -> np.ndarray:
    """What the engine gives for a text."""
    return np.array([len(ids), ids[0], ids[-1], 1, 2, 3, 4, 5], "<f4")


def posted(http: httpx2.Client, text: Any, **fields: Any) -> Any:
    reply = http.post("/v1/embeddings", json={"input": text, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def refused(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    reply = http.post("/v1/embeddings", json={"input": "Hello", **fields})
    assert reply.status_code == 400, reply.text
    error: dict[str, Any] = reply.json()["error"]
    return error


def test_a_text_has_a_vector_of_length_1_and_its_tokens_are_counted(
    live: Any, http: httpx2.Client
) -> None:
    ids = live.tokenizer.encode("Hello world")

    reply = posted(http, "Hello world", model="tiny-alias", user="someone")

    whole = vector(ids)
    assert reply["data"][0]["embedding"] == pytest.approx((whole / np.linalg.norm(whole)).tolist())
    assert (reply["object"], reply["data"][0]["object"]) == ("list", "embedding")
    assert reply["model"] == "tiny-alias"
    assert reply["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    (stream,) = live.engine.streams
    assert stream.context.pooling == "mean"
    assert stream.context.tokens.prompt.tolist() == ids


@pytest.mark.parametrize(
    "text", ["Hello", ["Hello", "How are you"], [5, 6, 7], [[5, 6], [7], [8, 9, 10]]]
)
def test_every_form_of_input(live: Any, http: httpx2.Client, text: Any) -> None:
    reply = posted(http, text)

    listed = text if isinstance(text, list) and not isinstance(text[0], int) else [text]
    ids = [live.tokenizer.encode(one) if isinstance(one, str) else one for one in listed]
    assert [row["index"] for row in reply["data"]] == list(range(len(ids)))
    for row, tokens in zip(reply["data"], ids, strict=True):
        whole = vector(tokens)
        assert row["embedding"] == pytest.approx((whole / np.linalg.norm(whole)).tolist())
    assert reply["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_base64_holds_the_same_floats(live: Any, http: httpx2.Client) -> None:
    floats = posted(http, "Hello")["data"][0]["embedding"]
    packed = posted(http, "Hello", encoding_format="base64")["data"][0]["embedding"]

    decoded = np.frombuffer(base64.b64decode(packed), "<f4")
    assert np.array_equal(decoded, np.array(floats, np.float32))


def test_the_official_client_reads_both(live: Any, sdk: openai.OpenAI) -> None:
    plain = sdk.embeddings.create(model="tiny", input=["Hello", "one"], encoding_format="float")
    packed = sdk.embeddings.create(model="tiny", input=["Hello", "one"])

    for one, other in zip(plain.data, packed.data, strict=True):
        assert np.array_equal(np.float32(one.embedding), np.float32(other.embedding))


def test_dimensions_cut_and_normalize_again(live: Any, http: httpx2.Client) -> None:
    cut = vector(live.tokenizer.encode("Hello"))[:3]

    reply = posted(http, "Hello", dimensions=3)

    assert reply["data"][0]["embedding"] == pytest.approx((cut / np.linalg.norm(cut)).tolist())


def test_a_model_that_does_not_normalize(live: Any, http: httpx2.Client) -> None:
    config = EmbeddingConfig("last", normalize=False, default_prompt="one ", lowers_case=True)
    served = dataclasses.replace(live.app.state.served, embedding=config)
    live.app.state.served = served

    reply = posted(http, "HELLO", dimensions=4)

    ids = live.tokenizer.encode("one hello")
    assert reply["data"][0]["embedding"] == vector(ids)[:4].tolist()
    assert http.post("/tokenize", json={"prompt": "HELLO"}).json()["tokens"] == ids


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"dimensions": 9}, "dimensions", "must be at most the model's 8, not 9"),
        ({"dimensions": 0}, "dimensions", "1"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": ""}, "input", "must not be empty"),
        ({"input": []}, "input", "must not be empty"),
        ({"input": ["a", ""]}, "input", "must not be empty"),
        ({"input": ["a", 5]}, "input", "must be a string"),
        ({"input": [[5], [999_999]]}, "input.1", "token ids must be between 0 and"),
        ({"input": [-1]}, "input", "token ids must be between 0 and"),
        ({"input": None}, "input", "is required"),
        ({"input": ["a"] * 2049}, "input", "at most 2048 texts, not 2049"),
        ({"prompt_name": "query"}, "prompt_name", "put the model's prompt before the text"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "is not supported"),
        ({"max_tokens": 5}, "max_tokens", "is not supported"),
    ],
)
def test_what_is_wrong_is_named(
    live: Any, http: httpx2.Client, fields: dict[str, Any], param: str, message: str
) -> None:
    error = refused(http, **fields)

    assert error["param"] == param
    assert message in error["message"]
    assert live.engine.streams == []


def test_a_text_longer_than_the_model_reads_is_refused(live: Any, http: httpx2.Client) -> None:
    error = refused(http, input=[[5], [5] * 41])

    assert (error["code"], error["param"]) == ("context_length_exceeded", "input.1")
    assert "maximum context length is 40 tokens" in error["message"]


def test_a_reply_that_would_be_too_large_is_refused(
    live: Any, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = dataclasses.replace(LIMITS, embedding_values=20)
    monkeypatch.setattr("quire.server.openai.embeddings.LIMITS", changed)

    error = refused(http, input=["a"] * 3)

    assert error["param"] == "input"
    assert "24 numbers; the limit of a reply is 20" in error["message"]
    assert len(posted(http, ["a"] * 3, dimensions=6)["data"]) == 3


def test_an_unknown_field_is_told(live: Any, http: httpx2.Client) -> None:
    reply = http.post("/v1/embeddings", json={"input": "a", "colour": "red"})

    assert "colour" in reply.headers["x-quire-warning"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/invocations", {"prompt": "Hello"}),
    ],
)
def test_generation_is_refused(
    live: Any, http: httpx2.Client, path: str, body: dict[str, Any]
) -> None:
    reply = http.post(path, json=body)

    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["message"] == "The model 'tiny' makes embeddings; use /v1/embeddings"
    assert (error["param"], error["code"]) == ("model", "wrong_task")


def test_a_model_that_generates_is_refused(live: Any, http: httpx2.Client) -> None:
    live.app.state.served = dataclasses.replace(live.app.state.served, embedding=None)

    assert "--task embeddings" in refused(http)["message"]


def test_invocations_embeds_an_input(live: Any, http: httpx2.Client) -> None:
    reply = http.post("/invocations", json={"input": "Hello"})

    assert len(reply.json()["data"][0]["embedding"]) == SIZE


def test_many_texts_take_turns_as_there_is_room(
    live: Any, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.engine.delay = 0.001
    live.engine.room = 5

    reply = posted(http, [[5, index] for index in range(150)])

    assert len(reply["data"]) == 150
    assert live.engine.most_live <= 5
    lasts = [round(row["embedding"][2] / row["embedding"][3]) for row in reply["data"]]
    assert lasts == list(range(150))


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (GenerationFailed("The model failed on this request"), 500),
        (EngineUnavailable("The engine is lost", 30.0), 503),
    ],
)
def test_a_failure_is_the_replys(
    live: Any, http: httpx2.Client, failure: Exception, status: int
) -> None:
    live.engine.fails_after = 0
    live.engine.failure = failure

    reply = http.post("/v1/embeddings", json={"input": ["a", "b"]})

    assert reply.status_code == status
    assert all(stream.is_closed for stream in live.engine.streams)


def test_a_full_queue_is_a_429(live: Any, http: httpx2.Client) -> None:
    live.engine.refusal = Overloaded("The queue is full", 3.0, queue_position=1)

    reply = http.post("/v1/embeddings", json={"input": "a"})

    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) >= 1


def test_a_client_that_leaves_frees_its_contexts(live: Any, http: httpx2.Client) -> None:
    live.engine.delay = 30.0
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/embeddings", json={"input": ["a", "b"]}, timeout=0.3)

    deadline = time.monotonic() + 20
    while not live.engine.streams or live.engine.num_live:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(live.engine.streams) == 2

"""The server keeps to its OpenAPI document on every path, whatever a client sends: data that the
document allows, and data that it does not."""

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from conformance import NEGATIVE, POSITIVE, exercise, has_input, operations, streaming
from schemathesis.core.failures import FailureGroup
from tool_models import TEMPLATE, Model

from quire.pipelines.embedding_config import EmbeddingConfig

STREAM = {"stream": True}
VECTOR_PATHS = {"/v1/embeddings", "/invocations", "/tokenize"}
MANY = pytest.param(300, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])
NUM_EXAMPLES = [pytest.param(6, id="some"), MANY]


@pytest.fixture
def live(live: Any) -> Iterator[Any]:
    """A server whose model takes tools and never runs out of words."""
    state = live.app.state
    before = state.served, state.grammars
    model = Model(live, "hermes", [], TEMPLATE)
    said = model.tokenizer.encode("Hello world", add_special_tokens=False)
    live.engine.script = lambda context: itertools.chain(said, itertools.repeat(model.eos))
    live.engine.chunk_size = 3
    yield live
    state.served, state.grammars = before


@pytest.mark.parametrize("num", NUM_EXAMPLES)
def test_what_the_document_allows_is_answered_as_it_says(live: Any, num: int) -> None:
    document = live.app.openapi()

    counts = exercise(document, live.url, POSITIVE, model="tiny", num_examples=num)

    assert counts.keys() == operations(document)
    refused = {name for name, statuses in counts.items() if not statuses[200] and "{" not in name}
    # Files and batches need a state folder: tests/e2e/test_openapi.py.
    assert {n for n in refused if not n.endswith(("files", "batches"))} == {"POST /v1/embeddings"}


@pytest.mark.parametrize("num", NUM_EXAMPLES)
def test_streams_are_of_the_documents_events(live: Any, num: int) -> None:
    document = live.app.openapi()
    paths = streaming(document)

    counts = exercise(
        document, live.url, POSITIVE, model="tiny", num_examples=num, only=paths, fields=STREAM
    )

    assert "POST /v1/chat/completions" in counts
    assert all(statuses[200] for name, statuses in counts.items() if name.startswith("POST"))


@pytest.mark.parametrize("num", NUM_EXAMPLES)
def test_a_model_of_embeddings_keeps_to_the_document(live: Any, num: int) -> None:
    state = live.app.state
    state.served = dataclasses.replace(
        state.served, embedding=EmbeddingConfig("mean"), hidden_size=8
    )

    counts = exercise(
        live.app.openapi(), live.url, POSITIVE, model="tiny", num_examples=num, only=VECTOR_PATHS
    )

    assert all(statuses[200] for statuses in counts.values())


@pytest.mark.parametrize("num", NUM_EXAMPLES)
def test_what_the_document_does_not_allow_is_refused(live: Any, num: int) -> None:
    document = live.app.openapi()

    counts = exercise(document, live.url, NEGATIVE, model="tiny", num_examples=num)

    assert counts.keys() == operations(document)
    assert {name for name, statuses in counts.items() if statuses} >= has_input(document)


@pytest.mark.parametrize("place", ["status", "reply", "event"])
def test_a_document_that_is_wrong_is_found(live: Any, place: str) -> None:
    document = copy.deepcopy(live.app.openapi())
    responses = document["paths"]["/v1/completions"]["post"]["responses"]
    if place == "status":
        del responses["200"]
    elif place == "reply":
        document["components"]["schemas"]["Completion"]["required"].append("color")
    else:
        event = responses["200"]["content"]["text/event-stream"]["schema"]
        chunk = event["properties"]["data"]["else"]["contentSchema"]["anyOf"][0]
        chunk["required"].append("color")

    fields = STREAM if place == "event" else {}
    paths = {"/v1/completions"}
    with pytest.raises(FailureGroup):
        exercise(
            document, live.url, POSITIVE, model="tiny", num_examples=20, only=paths, fields=fields
        )

"""A daemon with a model keeps to the OpenAPI document that it serves, on every path."""

import pytest
from conformance import NEGATIVE, POSITIVE, exercise, operations, streaming

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NUM_EXAMPLES = 40


@pytest.fixture(scope="module")
def server(launch, tmp_path_factory):
    """The demo model with room for files and batches, and for short replies alone."""
    folder = tmp_path_factory.mktemp("state")
    server = launch("--state-dir", str(folder / "state"), "--max-length", "160")
    server.wait_ready()
    return server


def test_what_the_document_allows_is_answered_as_it_says(server):
    document = server.http.get("/openapi.json").json()
    ask = {"model": "quire-demo", "num_examples": NUM_EXAMPLES}

    counts = exercise(document, server.url, POSITIVE, **ask)
    streams = exercise(
        document, server.url, POSITIVE, **ask, only=streaming(document), fields={"stream": True}
    )

    assert counts.keys() == operations(document)
    refused = {name for name, statuses in counts.items() if not statuses[200] and "{" not in name}
    # The demo model makes text, and no file that the fuzzer names is there.
    assert refused == {"POST /v1/embeddings", "POST /v1/batches"}
    assert streams["POST /v1/completions"][200]
    server.wait_idle()
    assert " 500 " not in server.log


def test_what_the_document_does_not_allow_is_refused(server):
    document = server.http.get("/openapi.json").json()

    counts = exercise(document, server.url, NEGATIVE, model="quire-demo", num_examples=NUM_EXAMPLES)

    assert counts.keys() == operations(document)
    assert server.http.get("/readyz").status_code == 200

"""Rules that hold for every object in a request."""

from typing import Any

import httpx2
import pytest


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2.0},
        {"max_tokens": 4.0, "min_tokens": 1.0},
        {"stop_token_ids": [5.0, 6]},
        {"prompt": [5.0, 6.0]},
        {"prompt": [[5.0], [6]]},
    ],
)
def test_a_whole_number_is_an_integer_however_it_is_written(
    live: Any, http: httpx2.Client, fields: dict[str, Any]
) -> None:
    reply = http.post("/v1/completions", json={"prompt": "Hello", **fields})

    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 1.5}, "n"),
        ({"n": 1e300}, "n"),
        ({"model": 1e300}, "model"),
        ({"stop": [1.0]}, "stop.0"),
        ({"stop_token_ids": [1e19]}, "stop_token_ids.0"),
        ({"echo": 1.0}, "echo"),
        ({"prompt": [5.5]}, "prompt"),
    ],
)
def test_other_numbers_are_refused(
    live: Any, http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    reply = http.post("/v1/completions", json={"prompt": "Hello", **fields})

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_the_document_names_what_is_refused_and_what_has_no_effect(
    live: Any, http: httpx2.Client
) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    body = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]

    assert body["x-refused"]["best_of"] == {"accepted": [1], "hint": "use n"}
    assert body["x-without-effect"]["user"] == "a string"
    assert not any(
        "422" in operation["responses"] for path in paths.values() for operation in path.values()
    )

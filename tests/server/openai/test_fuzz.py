"""Whatever JSON arrives, the answer is a reply or a 4xx with OpenAI's error body; never a 500."""

from typing import Any

import httpx2
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.server.openai import known_fields
from quire.server.openai.schema import ChatCompletionRequest, CompletionRequest

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-3, 300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["user", "text", "<|im_end|>", "tiny", "\x00", "role", "content"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner)
    ),
    max_leaves=8,
)
ROUTES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "completions": (
        {"prompt": "Hello"},
        [*CompletionRequest.model_fields, *known_fields.COMPLETION],
    ),
    "chat/completions": (
        {"messages": [{"role": "user", "content": "Hello"}]},
        [*ChatCompletionRequest.model_fields, *known_fields.CHAT],
    ),
}


@pytest.mark.parametrize("route", ROUTES)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_json_makes_a_500(
    live: Any, http: httpx2.Client, route: str, data: st.DataObject
) -> None:
    base, names = ROUTES[route]
    fields = data.draw(
        st.dictionaries(
            st.sampled_from([*names, *known_fields.NO_EFFECT, "odd"]), values, max_size=3
        )
    )
    body = orjson.dumps({**base, **fields})

    reply = http.post(f"/v1/{route}", content=body, headers={"content-type": "application/json"})

    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert error["message"] and error["type"] == "invalid_request_error"
        assert error["param"] is None or error["param"].split(".")[0] in body.decode()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls"]), values)
    )
)
def test_no_messages_make_a_500(live: Any, http: httpx2.Client, messages: Any) -> None:
    reply = http.post("/v1/chat/completions", json={"messages": messages})

    assert reply.status_code in (200, 400)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=40) | st.text('{}[]":,01eE+-.ntf\\u d8', max_size=20).map(str.encode)
)
def test_no_bytes_make_a_500(live: Any, http: httpx2.Client, body: bytes) -> None:
    reply = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})

    assert reply.status_code == 400

"""Responses that are kept: read, listed, deleted, gone on from; by whom, and for how long."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseItemList
from response_events import checked
from tool_models import ARGUMENTS, Model, written

from quire.config.settings import ServeSettings
from quire.server.app import build_app
from quire.server.auth import load_api_keys
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.openai.responses.store import ResponseStore

TEXT = "Hello world, how are you today?"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": None,
}


def prompt_of(live: Any) -> str:
    prompt = live.engine.streams[-1].context.tokens.prompt.tolist()
    text: str = live.tokenizer.decode(prompt, skip_special_tokens=False)
    return text


def test_a_response_is_kept_as_it_was_sent(live: Any, http: httpx2.Client) -> None:
    made = http.post("/v1/responses", json={"input": "Hello"})
    kept = http.get(f"/v1/responses/{made.json()['id']}")

    assert kept.content == made.content
    assert kept.headers["content-type"] == "application/json"


def test_the_client_deletes(live: Any, sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(model="tiny", input="Hello")
    assert sdk.responses.retrieve(made.id) == made
    sdk.responses.delete(made.id)

    for call in (
        sdk.responses.retrieve,
        sdk.responses.delete,
        sdk.responses.cancel,
        sdk.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError, match="not found"):
            call(made.id)
    assert live.app.state.responses.num_bytes == 0


def test_what_is_not_stored_is_not_there(live: Any, sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(model="tiny", input="Hello", store=False)

    assert made.model_extra == {"store": False}
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.responses.create(model="tiny", input="a", previous_response_id=made.id)
    assert refused.value.code == "previous_response_not_found"
    assert refused.value.param == "previous_response_id"


def test_a_store_that_is_off(live: Any, http: httpx2.Client) -> None:
    live.app.state.responses = ResponseStore(0, 100)
    plain = http.post("/v1/responses", json={"input": "Hello"})
    asked = http.post("/v1/responses", json={"input": "Hello", "store": True})

    assert plain.status_code == 200 and plain.json()["store"] is False
    assert asked.status_code == 400 and asked.json()["error"]["param"] == "store"
    assert http.get(f"/v1/responses/{plain.json()['id']}").status_code == 404


def test_a_conversation_goes_on(live: Any, sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model="tiny", input="one", instructions="Be kind.")
    live.says("said two")
    second = sdk.responses.create(model="tiny", input="two", previous_response_id=first.id)
    live.says("said three")
    third = sdk.responses.create(
        model="tiny",
        input="three",
        previous_response_id=second.id,
        instructions="Be brief.",
        store=False,
    )

    turns = [("user", "one"), ("assistant", TEXT), ("user", "two"), ("assistant", "said two")]
    assert prompt_of(live) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        + "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
        + "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    )
    assert third.previous_response_id == second.id
    # One answer may be gone on from twice.
    other = sdk.responses.create(model="tiny", input="else", previous_response_id=first.id)
    assert other.output_text == "said three"
    assert "said two" not in prompt_of(live)
    sdk.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match=first.id):
        sdk.responses.create(model="tiny", input="a", previous_response_id=second.id)


def test_a_conversation_goes_on_without_input(live: Any, http: httpx2.Client) -> None:
    first = http.post("/v1/responses", json={"input": "one"}).json()
    for body in ({}, {"input": None}, {"input": []}):
        body["previous_response_id"] = first["id"]
        reply = http.post("/v1/responses", json=body)
        assert reply.status_code == 200, reply.text
        assert prompt_of(live).endswith(
            f"<|im_start|>assistant\n{TEXT}<|im_end|>\n<|im_start|>assistant\n"
        )
        items = http.get(f"/v1/responses/{reply.json()['id']}/input_items").json()
        assert (items["data"], items["first_id"], items["has_more"]) == ([], None, False)
        counted = http.post("/v1/responses/input_tokens", json=body).json()
        assert counted["input_tokens"] == reply.json()["usage"]["input_tokens"]


def test_streams_are_kept_too(live: Any, sdk: openai.OpenAI) -> None:
    with sdk.responses.stream(model="tiny", input="Hello") as stream:
        final = stream.get_final_response()
    # The response is there when its last event is.
    kept = sdk.responses.retrieve(final.id)

    assert kept.output_text == final.output_text == TEXT


def test_a_tool_loop_by_ids_and_by_items(make: Callable[..., Model], sdk: openai.OpenAI) -> None:
    model = make("hermes")
    model.says(f"Look.\n{written('hermes', ARGUMENTS)}")
    asked: list[Any] = [{"role": "user", "content": "Weather?"}]
    first = sdk.responses.create(model="tiny", input=asked, tools=[WEATHER])
    call = first.output[1]
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}

    model.says("It is sunny.")
    raw = sdk.responses.with_raw_response.create(
        model="tiny", input=[result], tools=[WEATHER], previous_response_id=first.id
    )
    by_id = model.prompt
    items = [*asked, *first.output, result]
    sdk.responses.create(model="tiny", input=items, tools=[WEATHER])
    by_items = model.prompt
    called: Any = {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    chat: list[Any] = [
        *asked,
        {"role": "assistant", "content": "Look.", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"},
    ]
    function = {name: WEATHER[name] for name in ("name", "parameters")}
    tool: Any = {"type": "function", "function": function}
    sdk.chat.completions.create(model="tiny", messages=chat, tools=[tool])

    assert raw.parse().output_text == "It is sunny."
    assert "x-quire-warning" not in raw.headers
    assert by_id == by_items == model.prompt


def test_input_items(live: Any, sdk: openai.OpenAI) -> None:
    items: list[Any] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": []},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
        {"role": "assistant", "content": "Nice."},
    ]
    made = sdk.responses.create(model="tiny", input=items, instructions="Now.")
    listed = sdk.responses.input_items.list(made.id, order="asc")
    raw = sdk.responses.input_items.with_raw_response.list(made.id, order="asc")
    checked(ResponseItemList, json.loads(raw.text))
    data = listed.model_dump(mode="json", exclude_unset=True, by_alias=True)

    assert [item.type for item in listed.data] == [
        *("message", "message", "reasoning", "function_call", "function_call_output", "message")
    ]
    assert data["data"][1]["content"] == [{"type": "input_text", "text": "Weather?"}]
    assert data["data"][2]["id"] == "rs_1"
    assert len({item["id"] for item in data["data"]}) == 6
    ids = [item.id for item in listed.data]
    assert [item.id for item in sdk.responses.input_items.list(made.id)] == ids[::-1]
    paged = sdk.responses.input_items.list(made.id, order="asc", limit=2)
    assert paged.has_more and [item.id for item in paged.data] == ids[:2]
    assert [item.id for item in paged] == ids
    followed = sdk.responses.create(model="tiny", input="More?", previous_response_id=made.id)
    assert len(sdk.responses.input_items.list(followed.id).data) == 1


def test_an_id_given_twice_does_not_stop_a_list(live: Any, sdk: openai.OpenAI) -> None:
    same: Any = {"type": "message", "role": "user", "id": "msg_x"}
    items = [{**same, "content": text} for text in "abc"]
    made = sdk.responses.create(model="tiny", input=items)
    paged = sdk.responses.input_items.list(made.id, order="asc", limit=1)
    texts = [item.content[0].text for item in itertools.islice(paged, 9)]  # type: ignore[union-attr]

    assert texts == ["a", "b", "c"]


def test_what_cannot_be_asked_of_a_kept_response(live: Any, http: httpx2.Client) -> None:
    path = f"/v1/responses/{http.post('/v1/responses', json={'input': 'a'}).json()['id']}"
    for method, rest, param in (
        ("GET", "?stream=true", "stream"),
        ("GET", "?starting_after=3", "starting_after"),
        ("GET", "?include[]=message.output_text.logprobs", "include"),
        ("GET", "/input_items?include[]=x", "include"),
        ("GET", "/input_items?limit=0", "limit"),
        ("GET", "/input_items?limit=101", "limit"),
        ("GET", "/input_items?order=up", "order"),
        ("GET", "/input_items?after=msg_1", "after"),
        ("POST", "/cancel", "response_id"),
    ):
        reply = http.request(method, path + rest)
        assert reply.status_code == 400, rest
        assert reply.json()["error"]["param"] == param
    for rest in ("?stream=false", "?include[]=reasoning.encrypted_content"):
        assert http.get(path + rest).status_code == 200


class TestKeys:
    """Callers see what is their own."""

    @pytest.fixture
    def callers(self, live: Any, serve: Any, tmp_path: Any) -> Iterator[list[openai.OpenAI]]:
        path = tmp_path / "keys"
        path.write_text("ann:key-a\nann:key-b\nkey-c\n")
        settings = ServeSettings(api_key_file=path)
        app = build_app(
            settings, live.engine, load_api_keys(settings), Metrics("tiny"), Lifecycle()
        )
        app.state.served = live.app.state.served
        url = f"http://127.0.0.1:{serve(app).port}/v1"
        clients = [openai.OpenAI(base_url=url, api_key=key) for key in ("key-a", "key-b", "key-c")]
        yield clients
        for client in clients:
            client.close()

    def test_they_are_apart(self, callers: list[openai.OpenAI]) -> None:
        ann, ann_again, other = callers
        made: Response = ann.responses.create(model="tiny", input="Hello")

        # One name is one caller, so that a key can be changed for another.
        assert ann_again.responses.retrieve(made.id).id == made.id
        for call in (other.responses.retrieve, other.responses.delete):
            with pytest.raises(openai.NotFoundError):
                call(made.id)
        with pytest.raises(openai.BadRequestError):
            other.responses.create(model="tiny", input="a", previous_response_id=made.id)
        assert ann.responses.retrieve(made.id).id == made.id

"""What streams of Responses say, checked against the official client's types."""

import json
import re
import typing
from collections.abc import Iterator
from typing import Any

import httpx2
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

_EVENTS: dict[str, type[BaseModel]] = {
    typing.get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in typing.get_args(typing.get_args(ResponseStreamEvent)[0])
}
_ID = re.compile(r"\b(resp|msg|rs|fc|fco|call)_[0-9a-f]{24,}")
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
_STEPS = {
    kind: [
        ["output_item.added", "content_part.added", *delta]
        + [f"{name}.done", "content_part.done", "output_item.done"]
        for delta in ([f"{name}.delta"], [])
    ]
    for kind, name in _PARTS.items()
}
_STEPS["function_call"] = [
    ["output_item.added", *delta, "function_call_arguments.done", "output_item.done"]
    for delta in (["function_call_arguments.delta"], [])
]
"""What a client is told of an item, in order; an empty one has no deltas."""
BEYOND_THE_CLIENT = {"store", "bytes"}
"""OpenAI sends these, and the client's types do not have them everywhere."""


def checked(kind: type[BaseModel], data: dict[str, Any]) -> BaseModel:
    """`data` as the client's `kind`, with nothing converted and nothing that the type has not."""
    value = kind.model_validate(data, strict=True)
    assert set(_extras(value)) <= BEYOND_THE_CLIENT, list(_extras(value))
    return value


def response(data: dict[str, Any]) -> Response:
    value = checked(Response, data)
    assert isinstance(value, Response)
    return value


def streamed(http: httpx2.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, all of them in order and of a type that the client knows."""
    with http.stream("POST", "/v1/responses", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        text = "".join(reply.iter_text())
    events = []
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        checked(_EVENTS[event["type"]], event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    if events[-1]["type"] != "response.failed":
        assert _replayed(events) == events[-1]["response"]["output"]
    return events


def _replayed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that a client collects which reads nothing but what is added; every event is about
    the item that is open, and repeats what was said before."""
    opened, in_progress, *inner, last = events
    assert opened["type"] == "response.created" and in_progress["type"] == "response.in_progress"
    assert opened["response"] == in_progress["response"]
    assert last["type"] == f"response.{last['response']['status']}"
    items: list[dict[str, Any]] = []
    item, text, logprobs, steps = None, "", [], []
    for event in inner:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert item is None and event["item"]["status"] == "in_progress"
            item, text, logprobs, steps = event["item"], "", [], []
        assert item is not None and event["output_index"] == len(items)
        assert event.get("item_id", item["id"]) == item["id"]
        assert event.get("content_index", 0) == 0
        steps.append(kind)
        if kind.endswith(".delta"):
            assert event["delta"]
            text += event["delta"]
            logprobs += event.get("logprobs", [])
        elif kind.endswith("text.done"):
            assert (event["text"], event.get("logprobs", [])) == (text, logprobs)
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == text
            item = {**item, "arguments": text}
        elif kind == "content_part.done":
            assert event["part"]["text"] == text and event["part"].get("logprobs", []) == logprobs
            item = {**item, "content": [event["part"]]}
        elif kind == "output_item.done":
            item = {**item, "status": event["item"]["status"]}
            assert item == event["item"]
            assert [*dict.fromkeys(steps)] in _STEPS[item["type"]]
            items.append(item)
            item = None
    assert item is None
    return items


def same_for_all(value: Any) -> Any:
    """`value` with the ids and times that differ from one request to the next made equal."""
    seen: dict[str, str] = {}

    def numbered(found: re.Match[str]) -> str:
        return seen.setdefault(found[0], f"{found[1]}_{len(seen)}")

    text = _ID.sub(numbered, json.dumps(value))
    return json.loads(re.sub(r'"(created_at|completed_at)": \d+', r'"\1": 0', text))


def _extras(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from _extras(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from _extras(item)

"""A stream of OpenAI's chunks put together to the reply that the same request has whole."""

import itertools
from collections.abc import Sequence
from typing import Any

import httpx2
import orjson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

Json = dict[str, Any]

_WHOLE = {"chat.completion.chunk": "chat.completion", "text_completion": "text_completion"}
_HEAD = ("id", "created", "model", "system_fingerprint")
_ONCE = ("role", "id", "type", "finish_reason", "stop_reason")
BORDERS = st.lists(st.integers(1, 9), min_size=1, max_size=4)
FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def folded(chunks: Sequence[Json]) -> Json:
    """The reply that the chunks make; its usage is the one that they tell."""
    first = chunks[0]
    reply: Json = {name: first[name] for name in _HEAD} | {"object": _WHOLE[first["object"]]}
    choices: dict[int, Json] = {}
    for chunk in chunks:
        assert [chunk[name] for name in _HEAD] == [first[name] for name in _HEAD]
        for choice in chunk["choices"]:
            fields = {name: value for name, value in choice.items() if name != "index"}
            _join(choices.setdefault(choice["index"], {}), fields)
        for name in chunk.keys() - {"choices", "object", *_HEAD}:
            # Each choice of a chat begins with the ids of the prompt.
            assert reply.setdefault(name, chunk[name]) == chunk[name], f"{name} has changed"
    reply["choices"] = [{"index": index, **_whole(choices[index])} for index in sorted(choices)]
    return reply


def _join(whole: Json, piece: Json) -> None:
    """Texts and lists go on, objects by their fields and calls by their index."""
    for name, value in piece.items():
        before = whole.get(name)
        if before is None or value is None:
            whole[name] = before if value is None else _copied(name, value)
            continue
        assert name not in _ONCE, f"{name} is told twice"
        if name == "tool_calls":
            for call in value:
                _join(before.setdefault(call["index"], {}), _without_index(call))
        elif isinstance(value, dict):
            _join(before, value)
        else:
            whole[name] = before + value


def _copied(name: str, value: Any) -> Any:
    if name == "tool_calls":
        return {call["index"]: _copied("", _without_index(call)) for call in value}
    if isinstance(value, dict):
        return {inner: _copied(inner, of) for inner, of in value.items()}
    return list(value) if isinstance(value, list) else value


def _without_index(call: Json) -> Json:
    return {name: value for name, value in call.items() if name != "index"}


def _whole(choice: Json) -> Json:
    """As a whole reply has it: a message, in which only what was said is told."""
    choice = {"logprobs": None, "stop_reason": None, **choice}
    if "delta" not in choice:
        return choice
    message = {"refusal": None, **choice.pop("delta")}
    if "tool_calls" in message:
        message["tool_calls"] = [call for _, call in sorted(message["tool_calls"].items())]
        message["content"] = message["content"] or None
    return {**choice, "message": message}


def replies(http: httpx2.Client, route: str, body: Json) -> tuple[Json, Json]:
    """A request's reply, and what its stream folds to, with the ids of both made the same."""
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    whole = http.post(f"/v1/{route}", json=body)
    stream = http.post(f"/v1/{route}", json={**body, **usage})
    assert whole.status_code == stream.status_code, (whole.text, stream.text)
    if whole.status_code != 200:
        return whole.json(), stream.json()
    lines = [line for line in stream.text.split("\n\n") if line and line != ": ping"]
    assert lines.pop() == "data: [DONE]"
    chunks = [orjson.loads(line.removeprefix("data: ")) for line in lines]
    one, two = whole.json(), folded(chunks)
    for reply in (one, two):
        assert reply.pop("created") and reply.pop("id")
        for choice in reply["choices"]:
            for number, call in enumerate(choice.get("message", {}).get("tool_calls", ())):
                assert call["id"].startswith("call_")
                call["id"] = number
    return one, two


def say(live: Any, rows: Sequence[Sequence[int]], eos: int, sizes: Sequence[int]) -> None:
    """Choice i says row i, and ends as often as it is asked to go on."""
    live.engine.chunk_size = Borders(sizes)
    live.engine.script = lambda context: itertools.chain(
        rows[context.choice % len(rows)], itertools.repeat(eos)
    )


class Borders:
    """Stands for `FakeEngine.chunk_size`: the next chunk's size, over and over."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = itertools.cycle(sizes)

    def __index__(self) -> int:
        return next(self._sizes)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """An object with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)

"""Items become the messages that a chat of the same conversation has."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from tool_models import Model

USER = {"role": "user", "content": "a"}


def said(text: str) -> dict[str, Any]:
    return {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text}],
    }


def thought(text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": "rs", "summary": [], "content": content}


def called(call_id: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def returned(call_id: str, output: Any = "x") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def chat_call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "text parts": (
        [{"role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]}],
        [{"role": "user", "content": "a\nb"}],
    ),
    "roles": (
        [{"role": role, "content": role} for role in ("system", "developer", "user", "assistant")],
        [{"role": role, "content": role} for role in ("system", "developer", "user", "assistant")],
    ),
    "what was thought and said is one message": (
        [USER, thought("why"), said("b"), USER],
        [USER, {"role": "assistant", "content": "b", "reasoning_content": "why"}, USER],
    ),
    "a summary stands for what is not told": (
        [
            USER,
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}]},
            said("b"),
        ],
        [USER, {"role": "assistant", "content": "b", "reasoning_content": "why"}],
    ),
    "nothing thought": (
        [USER, {"type": "reasoning", "summary": []}, said("b")],
        [USER, {"role": "assistant", "content": "b"}],
    ),
    "parallel calls": (
        [USER, thought("why"), said("b"), called("1"), called("2"), returned("1"), returned("2")],
        [
            USER,
            {
                "role": "assistant",
                "content": "b",
                "reasoning_content": "why",
                "tool_calls": [chat_call("1"), chat_call("2")],
            },
            {"role": "tool", "tool_call_id": "1", "content": "x"},
            {"role": "tool", "tool_call_id": "2", "content": "x"},
        ],
    ),
    "text between calls stays before their results": (
        [USER, called("1"), said("b"), called("2"), returned("1"), returned("2")],
        [
            USER,
            {
                "role": "assistant",
                "content": "b",
                "tool_calls": [chat_call("1"), chat_call("2")],
            },
            {"role": "tool", "tool_call_id": "1", "content": "x"},
            {"role": "tool", "tool_call_id": "2", "content": "x"},
        ],
    ),
    "two messages of the assistant are two": (
        [USER, said("a"), said("b"), thought("why"), said("c")],
        [
            USER,
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "assistant", "content": "c", "reasoning_content": "why"},
        ],
    ),
    "a reply that was cut while it thought": (
        [USER, thought("why"), USER],
        [USER, {"role": "assistant", "content": "", "reasoning_content": "why"}, USER],
    ),
    "results in parts": (
        [USER, called("1"), returned("1", [{"type": "input_text", "text": t} for t in "ab"])],
        [
            USER,
            {"role": "assistant", "tool_calls": [chat_call("1")]},
            {"role": "tool", "tool_call_id": "1", "content": "a\nb"},
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_items_are_the_messages_of_a_chat(
    make: Callable[..., Model], http: httpx2.Client, name: str
) -> None:
    items, messages = CASES[name]
    model = make("hermes")
    model.says("ok")
    reply = http.post("/v1/responses", json={"input": items})
    assert reply.status_code == 200, reply.text
    of_items = model.prompt
    reply = http.post("/v1/chat/completions", json={"messages": messages})
    assert reply.status_code == 200, reply.text

    assert of_items == model.prompt

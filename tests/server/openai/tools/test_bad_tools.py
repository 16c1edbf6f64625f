"""Bad tools, calls and reasoning fields: a 400 that names the field."""

from typing import Any

import httpx2
import pytest

INVALID, MISSING, UNSUPPORTED = "invalid_value", "missing_field", "unsupported_parameter"
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}

# (fields, param, code) of a chat request, added to CHAT.
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function"}]}, "tools.0.function", MISSING),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type", UNSUPPORTED),
    ({"tools": [{"function": {"name": "a b"}}]}, "tools.0.function.name", INVALID),
    ({"tools": [{"function": {"name": "f"}}] * 2}, "tools", INVALID),
    ({"tools": [{"function": {"name": "f"}}] * 257}, "tools", INVALID),
    ({"tools": [{"function": {"name": "f"}}]}, "tools", UNSUPPORTED),
    ({"tools": 5}, "tools", INVALID),
    ({"tool_choice": "required"}, "tool_choice", INVALID),
    ({"tool_choice": "sometimes"}, "tool_choice", INVALID),
    (
        {"tools": [{"function": {"name": "f"}}], "tool_choice": {"type": "function"}},
        "tool_choice.function",
        MISSING,
    ),
    (
        {
            "tools": [{"function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        "tool_choice",
        INVALID,
    ),
    (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}
            ]
        },
        "messages.0.tool_calls.0.function.arguments",
        INVALID,
    ),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", INVALID),
    ({"function_call": "auto"}, "function_call", UNSUPPORTED),
    ({"reasoning_effort": "high"}, "reasoning_effort", UNSUPPORTED),
    ({"reasoning_effort": "extreme"}, "reasoning_effort", INVALID),
    ({"include_reasoning": 1}, "include_reasoning", INVALID),
    (
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]},
        "messages.0.tool_calls.0.function",
        MISSING,
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}
            ]
        },
        "messages.0.tool_calls",
        INVALID,
    ),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content", MISSING),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD)
def test_bad_tools(
    live: Any, http: httpx2.Client, fields: dict[str, Any], param: str, code: str
) -> None:
    reply = http.post("/v1/chat/completions", json={**CHAT, **fields})

    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert live.engine.streams == []

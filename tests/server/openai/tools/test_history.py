"""Functions and earlier calls as chat templates get them."""

import json
from collections.abc import Callable

import httpx2
import pytest
from tool_models import ASK, WEATHER, Model, marks_of


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"a": "\\ud800b"}', '{"a": "\ufffdb"}'),
        ('{"a": "\\ud83d\\ude42"}', '{"a": "🙂"}'),
        ('{"a":' * 900 + "1" + "}" * 900, None),
    ],
)
def test_odd_arguments_of_earlier_calls(
    make: Callable[..., Model], http: httpx2.Client, arguments: str, shown: str | None
) -> None:
    model = make("hermes")
    model.live.engine.max_length = 100_000
    model.says("ok")
    call = {"id": "call_1", "function": {"name": "get_weather", "arguments": arguments}}
    reply = http.post(
        "/v1/chat/completions",
        json={"messages": [*ASK, {"role": "assistant", "tool_calls": [call]}]},
    )

    assert reply.status_code == 200, reply.text
    assert (shown or json.dumps(arguments)) in model.prompt


def test_every_function_has_a_description_in_harmony(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    """gpt-oss's template adds it to a string."""
    template = (
        "{% for t in tools or [] %}{{ '// ' + t.function.description }}{% endfor %}"
        "{% if tools %}<|channel|><|message|>{% endif %}"
    )
    make(marks=marks_of("harmony"), template=template).says("<|channel|>final<|message|>ok")

    reply = http.post("/v1/chat/completions", json={"messages": ASK, "tools": [WEATHER]})

    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("content", [None, ""])
def test_templates_that_ask_whether_content_is_null(
    make: Callable[..., Model], http: httpx2.Client, content: str | None
) -> None:
    """DeepSeek R1's prints the calls of a message only then."""
    template = (
        "{% for m in messages %}{% if m['content'] is none %}{{ m.tool_calls[0].function.name }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    model = make("hermes", template=template)
    model.says("ok")
    call = {"id": "call_1", "function": {"name": "get_weather", "arguments": "{}"}}
    message = {"role": "assistant", "content": content, "tool_calls": [call]}
    http.post("/v1/chat/completions", json={"messages": [*ASK, message]})

    assert model.prompt == "Weather?get_weather"


def test_the_history_reaches_the_template(make: Callable[..., Model], http: httpx2.Client) -> None:
    model = make("hermes")
    model.says("ok")
    call = {
        "id": "call_1",
        "type": "function",
        "index": 0,
        "function": {"name": "get_weather", "arguments": '{"city":  "Rome"}'},
    }
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sun"}]},
    ]
    reply = http.post("/v1/chat/completions", json={"messages": messages, "tools": [WEATHER]})

    assert reply.status_code == 200, reply.text
    assert "x-quire-warning" not in reply.headers
    assert model.prompt == (
        f"TOOLS {json.dumps([WEATHER])};[user] Weather?;"
        '[assistant]  (why: hm) call_1 get_weather {"city": "Rome"};'
        "[tool get_weather call_1] sun;[assistant]"
    )


def test_ids_that_count_calls(make: Callable[..., Model], http: httpx2.Client) -> None:
    """Kimi K2 knows a result by the name and the number of its call."""
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }};{% endfor %}"
        "{% if m.tool_call_id %}{{ m.tool_call_id }} {{ m.name }};{% endif %}{% endfor %}"
    )
    model = make("kimi_k2", template=template)
    model.says("ok")
    calls = [{"id": f"call_{name}", "function": {"name": name}} for name in ("f", "g")]
    messages = [
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_g", "content": "x"},
        {"role": "tool", "tool_call_id": "other", "content": "y"},
        {"role": "assistant", "tool_calls": [{**calls[0], "id": "call_h"}]},
        {"role": "tool", "tool_call_id": "call_h", "content": "z"},
        {"role": "assistant", "tool_calls": [{**calls[0], "id": "call_h"}]},
        {"role": "assistant", "tool_calls": [{**calls[0], "id": "call_i"}]},
    ]
    reply = http.post("/v1/chat/completions", json={"messages": messages})

    assert reply.status_code == 200, reply.text
    assert model.prompt == (
        "functions.f:0;functions.g:1;functions.g:1 g;other ;functions.f:2;functions.f:2 f;"
        "functions.f:3;functions.f:4;"
    )


def test_broken_arguments_where_the_template_lists_them(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{% for k, v in c.function.arguments | items %}<parameter={{ k }}>{{ v }};{% endfor %}"
        "{% endfor %}{% endfor %}"
    )
    model = make("qwen3_coder", template=template)
    model.says("ok")
    calls = [
        {"id": str(number), "function": {"name": "f", "arguments": arguments}}
        for number, arguments in enumerate(['{"a": 5, "b": "x"}', '{"a": ', "[1]", ""])
    ]
    reply = http.post(
        "/v1/chat/completions", json={"messages": [{"role": "assistant", "tool_calls": calls}]}
    )

    assert reply.status_code == 200, reply.text
    assert model.prompt == (
        '<parameter=a>5;<parameter=b>x;<parameter=arguments>{"a": ;<parameter=arguments>[1];'
    )
    assert "calls.1" in reply.headers["x-quire-warning"]

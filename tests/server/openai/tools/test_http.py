"""Tools and reasoning through the whole HTTP layer, for models of every format."""

from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from tool_models import (
    ARGUMENTS,
    ASK,
    TEMPLATE,
    WEATHER,
    Model,
    chunks_of,
    marks_of,
    streamed,
    written,
)

from quire.config.settings import ServeSettings, ToolCallParser
from quire.server.openai.tools.formats import FORMATS, format_of


@pytest.mark.parametrize("chunk_size", [1, 5, 1000])
@pytest.mark.parametrize("name", [row.name for row in FORMATS])
def test_a_call_in_every_format(
    make: Callable[..., Model], http: httpx2.Client, name: str, chunk_size: int
) -> None:
    model = make(name, marks_of(name))
    model.live.engine.chunk_size = chunk_size
    model.says(written(name, ARGUMENTS))
    body = {"messages": ASK, "tools": [WEATHER]}

    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    pieces = streamed(http, body)

    assert choice["finish_reason"] == pieces[-1]["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
    deltas = [delta for piece in pieces for delta in piece["delta"].get("tool_calls", ())]
    assert deltas[0]["type"] == "function" and deltas[0]["id"].startswith("call_")
    assert deltas[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert all(delta.keys() == {"index", "function"} for delta in deltas[1:])
    assert "".join(delta["function"]["arguments"] for delta in deltas) == ARGUMENTS
    assert [spec.kind for spec, _ in model.compiler.asked] == ["structural_tag"] * 2
    reasoning = "".join(piece["delta"].get("reasoning_content", "") for piece in pieces)
    assert reasoning == choice["message"].get("reasoning_content", "")
    assert reasoning == ("Look." if name == "harmony" else "")


def test_choices_that_might_call_are_counted_by_whether_they_do(
    make: Callable[..., Model], http: httpx2.Client, value_of: Callable[..., float]
) -> None:
    model = make("hermes")
    metrics = model.live.app.state.metrics

    def counted(**labels: str) -> float:
        name = "vllm:tool_call_parser_invocations_total"
        return value_of(metrics, name, request_type="chat_completions", **labels)

    kinds = [
        {"mode": mode, "outcome": outcome}
        for mode in ("non_streaming", "streaming")
        for outcome in ("tool_call", "no_tool_call")
    ]
    before = [counted(**kind) for kind in kinds]
    for text in (f"{written('hermes', ARGUMENTS)}" * 2, "No."):
        model.says(text)
        http.post("/v1/chat/completions", json={"messages": ASK, "tools": [WEATHER], "n": 3})
        streamed(http, {"messages": ASK, "tools": [WEATHER]})
        # It cannot call anything.
        http.post("/v1/chat/completions", json={"messages": ASK})

    assert [counted(**kind) - old for kind, old in zip(kinds, before, strict=True)] == [3, 3, 1, 1]


def test_the_stream_helper_assembles_calls(make: Callable[..., Model], sdk: openai.OpenAI) -> None:
    model = make("hermes")
    call = written("hermes", ARGUMENTS)
    model.says(f"Well.\n{call}\n{call}")
    with sdk.chat.completions.stream(
        model="tiny",
        messages=[{"role": "user", "content": "Weather?"}],
        tools=[WEATHER],  # type: ignore[list-item]
        n=2,
    ) as stream:
        final = stream.get_final_completion()

    for choice in final.choices:
        assert choice.message.content == "Well."
        assert [call.function.arguments for call in choice.message.tool_calls or ()] == [
            ARGUMENTS
        ] * 2
    ids = [call.id for choice in final.choices for call in choice.message.tool_calls or ()]
    assert len(set(ids)) == 4


def test_markers_that_are_control_tokens_never_show(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    model = make("mistral", marks_of("mistral"))
    model.says("So<other>me [TOOL_CALLS]other[ARGS]{} text")
    body = {"messages": ASK, "tools": [WEATHER]}

    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]

    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
    assert "[TOOL_CALLS]" not in choice["message"]["content"]
    assert choice["message"]["content"].startswith("Some other")
    bare = http.post("/v1/chat/completions", json={"messages": ASK}).json()
    assert bare["choices"][0]["message"]["content"] == "Some other{} text"


def test_a_model_cannot_spell_a_control_token(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    """Not even with the character that stands before those which it did write."""
    model = make("mistral", marks_of("mistral"))
    spelled = "\ufdd0[TOOL_CALLS]get_weather\ufdd0[ARGS]{}"
    pieces = [model.tokenizer.encode(c, add_special_tokens=False) for c in spelled]
    tokens = [token for piece in pieces for token in piece]
    model.live.engine.script = lambda context: [*tokens, model.eos]

    body = {"messages": ASK, "tools": [WEATHER]}
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]

    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"] == spelled.replace("\ufdd0", "\ufffd")
    assert (
        "".join(p["delta"].get("content", "") for p in streamed(http, body))
        == choice["message"]["content"]
    )


def test_templates_that_want_text_or_short_ids(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.id + ' ' + c.function.arguments }}{% endfor %}{{ m.tool_call_id }};{% endfor %}"
    )
    model = make("mistral_list", template=template)
    model.says("ok")
    call = {"id": "call_12345", "function": {"name": "f", "arguments": '{"a":  1}'}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_12345", "content": "x"},
    ]
    reply = http.post("/v1/chat/completions", json={"messages": messages})

    assert reply.status_code == 200, reply.text
    first, second, _ = model.prompt.split(";")
    assert len(second) == 9 and first == second + ' {"a":  1}'


def test_tools_in_the_system_message(make: Callable[..., Model], http: httpx2.Client) -> None:
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}|{{ m['tools'] }};{% endfor %}"
    model = make("phi4_mini", template=template)
    model.says("ok")
    reply = http.post("/v1/chat/completions", json={"messages": ASK, "tools": [WEATHER]})

    assert reply.status_code == 200, reply.text
    assert model.prompt.startswith('system:|[{"name": "get_weather"')


THINK = TEMPLATE + "{% if thinking %}<think>{% endif %}{# </think> #}"


def test_reasoning_is_a_field_of_its_own(make: Callable[..., Model], http: httpx2.Client) -> None:
    model = make(template=THINK)
    model.says("<think>\nHm.\n</think>\n\nYes.")
    body: dict[str, Any] = {"messages": ASK, "logprobs": True}

    reply = http.post("/v1/chat/completions", json=body).json()
    message = reply["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    pieces = streamed(http, body)
    assert "".join(piece["delta"].get("reasoning_content", "") for piece in pieces) == "Hm."
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == "Yes."
    entries = [e for piece in pieces for e in (piece["logprobs"] or {"content": []})["content"]]
    assert entries == reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == reply["usage"]["completion_tokens"]

    model.live.app.state.settings = ServeSettings(reasoning_field="reasoning")
    renamed = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert renamed["reasoning"] == "Hm." and "reasoning_content" not in renamed
    left_out = http.post("/v1/chat/completions", json={**body, "include_reasoning": False}).json()
    assert left_out["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
    }


@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
@pytest.mark.parametrize("shown", [True, False])
def test_the_usage_tells_the_tokens_of_reasoning(
    make: Callable[..., Model], http: httpx2.Client, chunk_size: int, shown: bool
) -> None:
    model = make(template=THINK)
    model.live.engine.chunk_size = chunk_size
    model.says("<think>\nHm. 🙂\n</think>\n\nYes.")
    body: dict[str, Any] = {"messages": ASK, "n": 2, "include_reasoning": shown}

    usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = chunks_of(http, {**body, "stream_options": options})

    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2 * 10}
    assert chunks[-1]["usage"] == usage
    told = [c["usage"]["completion_tokens_details"]["reasoning_tokens"] for c in chunks]
    assert told == sorted(told)
    model.says("Yes.")
    usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


@pytest.mark.parametrize(
    ("effort", "reasoning", "content"), [("high", "Hm.", "Yes."), ("none", None, "Hm.</think>Yes.")]
)
def test_the_effort_turns_reasoning_on_and_off(
    make: Callable[..., Model],
    http: httpx2.Client,
    effort: str,
    reasoning: str | None,
    content: str,
) -> None:
    model = make(template=THINK)
    model.says("Hm.</think>Yes.")
    body = {"messages": ASK, "reasoning_effort": effort}

    message = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]

    assert model.prompt.endswith("<think>") is (effort == "high")
    assert (message.get("reasoning_content"), message["content"]) == (reasoning, content)


def test_the_answers_grammar_begins_after_the_reasoning(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    model = make(template=THINK)
    model.says('<think>Hm.</think>{"a": 1}')
    body = {"messages": ASK, "response_format": {"type": "json_object"}}

    message = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]

    assert message["content"] == '{"a": 1}'
    ((spec, param),) = model.compiler.asked
    assert (spec.kind, param) == ("structural_tag", "response_format")
    assert "</think>" in spec.source


def test_stop_strings_cut_calls(make: Callable[..., Model], http: httpx2.Client) -> None:
    model = make("hermes")
    model.says(written("hermes", ARGUMENTS))
    body = {"messages": ASK, "tools": [WEATHER], "stop": "ri}"}

    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]

    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "ri}")
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"city": "Pa\\"'


def test_min_tokens_may_stand_beside_tools(make: Callable[..., Model], http: httpx2.Client) -> None:
    make("hermes").says("Hello")
    body: dict[str, Any] = {"messages": ASK, "tools": [WEATHER], "min_tokens": 2}

    assert http.post("/v1/chat/completions", json=body).status_code == 200
    for fields in ({"tool_choice": "required"}, {"parallel_tool_calls": False}):
        assert http.post("/v1/chat/completions", json={**body, **fields}).status_code == 400


LLAMA4 = (
    "<|header_start|><|python_start|> Respond in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}. '
    "{{- '\"parameters\": ' }}"
)


def test_llama_4s_own_template_asks_for_json() -> None:
    found = format_of(LLAMA4)
    assert found is not None and found.name == "llama3_json"


RECOGNISED = {
    "hermes": "{{ tools }} <tool_call>\n{name}</tool_call>",
    "mistral": "[AVAILABLE_TOOLS][TOOL_CALLS] name [ARGS]",
    "mistral_list": "[AVAILABLE_TOOLS] [TOOL_CALLS] [",
    "llama3_json": '<|start_header_id|> {"name": function name, "parameters": dictionary',
    "pythonic": "Use exact format: [func_name1(param1=value1)]",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>{{ call.id }}",
    "qwen3_coder": "<tool_call>\n<function=example_function_name>\n<parameter=",
    "glm45": "<tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>",
    "glm47": "<tool_call>{name}<arg_key>{key}</arg_key><arg_value>",
    "minimax_m2": "<minimax:tool_call> '<invoke name=\"'",
    "harmony": "<|start|>assistant<|channel|>analysis<|message|>",
    "granite": "<|start_of_role|>available_tools<|end_of_role|> <|tool_call|>",
    "phi4_mini": "<|tool|>{{ message['tools'] }}<|/tool|>",
    "functools": 'functools[{"name"',
}


def test_every_format_is_a_setting_and_is_recognised() -> None:
    names = {row.name for row in FORMATS}
    assert set(ToolCallParser.__args__) == names | {"auto", "none"}
    assert RECOGNISED.keys() == names
    for name, source in RECOGNISED.items():
        found = format_of(source)
        assert found is not None and found.name == name
    assert format_of("{{ messages }}") is None


MARKS = ("<think>", "</think>")


@pytest.mark.parametrize(("thinking", "is_open"), [(False, False), (True, True)])
def test_a_budget_of_reasoning_reaches_the_engine(
    make: Callable[..., Model], http: httpx2.Client, thinking: bool, is_open: bool
) -> None:
    model = make(marks=MARKS, template=THINK)
    model.says("Yes.")
    body = {"messages": ASK, "thinking_token_budget": 5}
    body["chat_template_kwargs"] = {"thinking": thinking}

    assert http.post("/v1/chat/completions", json=body).status_code == 200

    found = model.live.engine.streams[-1].context.params.thinking
    ids = [model.tokenizer.special_tokens[mark] for mark in MARKS]
    assert (found.tokens, found.opening, found.closing, found.is_open) == (5, *ids, is_open)
    assert {model.tokenizer.decode([id]) for id in found.spaces} == {" ", "\n"}
    http.post("/v1/chat/completions", json={"messages": ASK})
    assert model.live.engine.streams[-1].context.params.thinking is None


@pytest.mark.parametrize(
    ("marks", "template", "budget"), [((), THINK, 5), (MARKS, TEMPLATE, 5), (MARKS, THINK, -1)]
)
def test_a_budget_that_cannot_be_kept(
    make: Callable[..., Model],
    http: httpx2.Client,
    marks: tuple[str, ...],
    template: str,
    budget: int,
) -> None:
    make(marks=marks, template=template).says("Yes.")
    body = {"messages": ASK, "thinking_token_budget": budget}

    reply = http.post("/v1/chat/completions", json=body)

    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "thinking_token_budget"


def test_a_budget_where_the_prompt_ended_the_reasoning(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    model = make(marks=MARKS, template=THINK + "<think></think>")
    model.says("Yes.")
    body = {"messages": ASK, "thinking_token_budget": 5}

    assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert model.live.engine.streams[-1].context.params.thinking is None

"""Tools and reasoning through the whole HTTP layer, for models of every format."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from quire.config.settings import ServeSettings, ToolCallParser
from quire.pipelines.core.grammar import Grammar, GrammarSpec
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.openai.served import ServedModel
from quire.server.openai.tools.dialect import Dialect
from quire.server.openai.tools.formats import FORMATS, format_named, format_of

END = "<|im_end|>"
TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }};{% endif %}{% for m in messages %}"
    "[{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}"
    "{% if m.tool_call_id %} {{ m.tool_call_id }}{% endif %}] {{ m.content }}"
    "{% if m.reasoning_content %} (why: {{ m.reasoning_content }}){% endif %}"
    "{% for c in m.tool_calls or [] %} {{ c.id }} {{ c.function.name }} "
    "{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"
    "{% if effort is defined %}{{ effort }}{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ASK: list[dict[str, Any]] = [{"role": "user", "content": "Weather?"}]
ARGUMENTS = '{"city": "Pa\\"ri}s 日本"}'


def tokenizer_with(marks: list[str], template: str) -> TextTokenizer:
    """One token per byte; `marks` are control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: at for at, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, "<other>", *marks])
    return TextTokenizer(backend.to_str().encode(), {"eos_token": END}, template)


class FakeCompiler:
    """Notes what it was asked to compile."""

    def __init__(self) -> None:
        self.asked: list[tuple[GrammarSpec, str]] = []

    async def compile(self, spec: GrammarSpec, param: str) -> Grammar:
        self.asked.append((spec, param))
        return Grammar("digest", "data")


class Model:
    """The server's model, as one of some format; `says` scripts its next reply."""

    def __init__(self, live: Any, format_: str, marks: list[str], template: str) -> None:
        self.live = live
        self.tokenizer = tokenizer_with(marks, template)
        self.eos = self.tokenizer.special_tokens[END]
        self.compiler = FakeCompiler()
        live.app.state.grammars = self.compiler
        live.engine.max_length = 4096
        live.app.state.served = ServedModel(
            names=("tiny",),
            tokenizer=self.tokenizer,
            vocab_size=self.tokenizer.vocab_size,
            eos_token_ids=(self.eos,),
            system_fingerprint="fp_test",
            dialect=Dialect.of(self.tokenizer, format_),
        )

    def says(self, text: str) -> None:
        tokens = [*self.tokenizer.encode(text, add_special_tokens=False), self.eos]
        self.live.engine.script = lambda context: tokens

    @property
    def prompt(self) -> str:
        context = self.live.engine.streams[-1].context
        return self.tokenizer.decode(context.tokens.prompt.tolist(), skip_special_tokens=False)


@pytest.fixture
def make(live: Any) -> Iterator[Callable[..., Model]]:
    state = live.app.state
    before = state.served, state.grammars, state.settings

    def made(format_: str = "auto", marks: tuple[str, ...] = (), template: str = TEMPLATE) -> Model:
        return Model(live, format_, list(marks), template)

    yield made
    state.served, state.grammars, state.settings = before


def marks_of(name: str) -> tuple[str, ...]:
    row = format_named(name)
    return tuple(m for m in (*row.openings, *row.inner_marks, *row.closings) if m != "functools[")


def written(name: str, arguments: str) -> str:
    format_ = format_named(name)
    if name == "harmony":
        return (
            "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary "
            f"to=functions.get_weather <|constrain|>json<|message|>{arguments}"
        )
    if format_.family == "pythonic":
        arguments = "city=" + json.dumps(json.loads(arguments)["city"], ensure_ascii=False)
    call = format_.call.replace("NAME", "get_weather").replace("ARGUMENTS", arguments)
    return f"{format_.before}{call}{format_.after}"


def streamed(http: httpx2.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200, reply.read()
        lines = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert not any("error" in chunk for chunk in chunks)
    return [choice for chunk in chunks for choice in chunk["choices"]]


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


RECOGNISED = {
    "hermes": "{{ tools }} <tool_call>\n{name}</tool_call>",
    "mistral": "[AVAILABLE_TOOLS][TOOL_CALLS] name [ARGS]",
    "mistral_list": "[AVAILABLE_TOOLS] [TOOL_CALLS] [",
    "llama3_json": '<|start_header_id|> {"name": function name, "parameters": dictionary',
    "pythonic": "Use exact format: [func_name1(param1=value1)]",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>",
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
    assert format_of("<tool_call><function=") is None
    assert format_of("{{ messages }}") is None

"""A model of any tool format behind the HTTP layer, whose replies are scripted."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from quire.pipelines.core.grammar import Grammar, GrammarSpec
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.openai.served import ServedModel
from quire.server.openai.tools.dialect import Dialect
from quire.server.openai.tools.formats import ToolFormat, format_named

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


def marks_of(name: str) -> tuple[str, ...]:
    row = format_named(name)
    return tuple(m for m in (*row.openings, *row.inner_marks, *row.closings) if m != "functools[")


def call_text(
    format_: ToolFormat,
    name: str,
    arguments: Mapping[str, Any],
    *,
    dump: Callable[[Any], str] = json.dumps,
    python: Callable[[Any], str] | None = None,
) -> str:
    """A call without what stands around it; `dump` writes JSON, `python` the values of keywords."""
    text = dump(arguments)
    if format_.family == "pythonic":
        text = ", ".join(f"{key}={(python or dump)(value)}" for key, value in arguments.items())
    elif format_.family == "xml":
        shown = {key: v if isinstance(v, str) else dump(v) for key, v in arguments.items()}
        parts = (format_.argument.replace("KEY", key).replace("VALUE", shown[key]) for key in shown)
        text = "".join(parts)
    return format_.call.replace("NAME", name).replace("INDEX", "0").replace("ARGUMENTS", text)


def written(name: str, arguments: str) -> str:
    format_ = format_named(name)
    if name == "harmony":
        return (
            "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary "
            f"to=functions.get_weather <|constrain|>json<|message|>{arguments}"
        )
    if format_.family in ("pythonic", "xml"):
        dump = functools.partial(json.dumps, ensure_ascii=False)
        call = call_text(format_, "get_weather", json.loads(arguments), dump=dump)
    else:
        call = format_.call.replace("NAME", "get_weather").replace("INDEX", "0")
        call = call.replace("ARGUMENTS", arguments)
    return f"{format_.before}{call}{format_.after}"


def chunks_of(http: httpx2.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200, reply.read()
        lines = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert not any("error" in chunk for chunk in chunks)
    return chunks


def streamed(http: httpx2.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [choice for chunk in chunks_of(http, body) for choice in chunk["choices"]]

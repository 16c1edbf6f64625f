"""The grammars of every format: what they let a model write is what the parser reads."""

import json
import random
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from tool_grammars import MARKS, Grammar, tokenizer_with
from tool_models import call_text

from quire.pipelines.core.grammar import GrammarSpec
from quire.server.errors import InvalidRequest
from quire.server.openai.tools.dialect import Dialect, Opening
from quire.server.openai.tools.formats import FORMATS, format_named
from quire.server.openai.tools.plan import ReplyPlan, allowed_names
from quire.server.openai.tools.request import AllowedTools, FunctionTool, NamedTool
from quire.server.openai.tools.thinking import THINK_TAGS

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", 'a "b" {']},
        "days": {"type": "integer", "minimum": 1, "maximum": 20},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city"],
}
OPTIONAL = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"enum": [1, "x"]}}}
SCHEMAS: dict[str, dict[str, Any]] = {"get_weather": WEATHER, "opt": OPTIONAL, "none": {}}
TOOLS = tuple(
    FunctionTool.model_validate({"function": {"name": name, "parameters": schema}})
    for name, schema in SCHEMAS.items()
)
EVERY = pytest.mark.parametrize("name", [row.name for row in FORMATS])
SPECIAL = pytest.mark.parametrize("special", [False, True], ids=["text", "control"])
NAMED = NamedTool.model_validate({"type": "function", "function": {"name": "opt"}})


def plan_of(
    name: str, special: bool, *, opening: Opening = "after", think: bool = False, **fields: Any
) -> ReplyPlan:
    tools = format_named(name)
    known = tokenizer_with(special).special_tokens
    dialect = Dialect(
        tools=tools,
        is_harmony=name == "harmony",
        think=THINK_TAGS[0] if think else None,
        specials={mark: known[mark] for mark in MARKS if mark in known},
    )
    choice = fields.pop("choice", None)
    return ReplyPlan(
        dialect=dialect,
        opening=opening,
        names=allowed_names(dialect, list(TOOLS), choice),
        choice=choice,
        tools=TOOLS,
        **fields,
    )


def written(name: str, *calls: tuple[str, Mapping[str, Any]]) -> str:
    format_ = format_named(name)
    if name == "harmony":
        (called, arguments) = calls[0]
        head = f"<|channel|>commentary to=functions.{called} <|constrain|>json<|message|>"
        return head + json.dumps(arguments)
    texts = [call_text(format_, called, arguments) for called, arguments in calls]
    return format_.before + format_.between.join(texts) + format_.after


GOOD = ("get_weather", {"city": 'a "b" {', "days": 12})
BAD = ("get_weather", {"city": "Rome"})


@EVERY
@SPECIAL
def test_auto_lets_text_and_valid_calls_through(name: str, special: bool) -> None:
    grammar = Grammar(plan_of(name, special), special)
    text = "Some {text} [1].\n"
    harmless = f"<|channel|>final<|message|>{text}" if name == "harmony" else text

    assert grammar.takes(harmless) is True
    assert grammar.takes(written(name, GOOD)) is True
    assert grammar.takes(written(name, BAD)) is False
    unknown = written(name, ("other", {}))
    if not format_named(name).is_bare:
        assert grammar.takes(unknown) is False
    else:
        assert grammar.read(unknown) == (unknown, [])
    if name != "harmony":
        assert grammar.takes(written(name, GOOD, ("opt", {"b": "x"}))) is True
        assert grammar.takes(written(name, ("none", {}))) is True


@EVERY
@SPECIAL
def test_required_calls_begin_at_once(name: str, special: bool) -> None:
    grammar = Grammar(plan_of(name, special, choice="required"), special)
    text = "<|channel|>final<|message|>Hi" if name == "harmony" else "Hi"

    assert grammar.takes(text) is False
    assert grammar.takes("") is None
    assert grammar.takes(written(name, GOOD)) is True
    for _ in range(4):
        check_walks(grammar, random.Random(name), least=1)


@EVERY
@SPECIAL
def test_a_named_function_is_the_only_one_and_once(name: str, special: bool) -> None:
    grammar = Grammar(plan_of(name, special, choice=NAMED), special)

    assert grammar.takes(written(name, ("opt", {"a": None, "b": 1}))) is True
    assert grammar.takes(written(name, GOOD)) is False
    check_walks(grammar, random.Random(name), least=1, most=1)
    if name != "harmony":
        assert grammar.takes(written(name, ("opt", {}), ("opt", {}))) is False


@EVERY
def test_allowed_tools_leave_the_others_out(name: str) -> None:
    allowed = {
        "mode": "auto",
        "tools": [{"type": "function", "function": {"name": "opt"}}],
    }
    choice = AllowedTools.model_validate({"type": "allowed_tools", "allowed_tools": allowed})
    grammar = Grammar(plan_of(name, True, choice=choice), True)

    assert grammar.takes(written(name, ("opt", {}))) is True
    assert grammar.read(written(name, GOOD))[1] == []


@pytest.mark.parametrize("name", [row.name for row in FORMATS if row.name != "harmony"])
@pytest.mark.parametrize("choice", [None, "required"])
def test_without_parallel_calls_there_is_one(name: str, choice: Any) -> None:
    grammar = Grammar(plan_of(name, True, choice=choice, is_parallel=False), True)

    assert grammar.takes(written(name, GOOD)) is True
    assert grammar.takes(written(name, GOOD, GOOD)) is False


def check_walks(grammar: Grammar, rng: random.Random, *, least: int = 0, most: int = 1000) -> None:
    text = grammar.walk(rng)
    if text is None:
        return
    content, calls = grammar.read(text)
    assert content == ""
    assert least <= len(calls) <= most
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), {"type": "object", **SCHEMAS[name]})


JSON_ANSWER = (
    "response_format",
    GrammarSpec("json_schema", json.dumps({"type": "object", "properties": {"x": {"enum": [1]}}})),
)


@EVERY
def test_an_answers_schema_beside_tools(name: str) -> None:
    grammar = Grammar(plan_of(name, True), True, JSON_ANSWER)
    start = "<|channel|>final<|message|>" if name == "harmony" else ""

    assert grammar.takes(f'{start}{{"x": 1}}') is True
    assert grammar.takes(f"{start}Hello") is False
    assert grammar.takes(written(name, GOOD)) is True
    assert grammar.takes(written(name, BAD)) is False


ANSWERS = {
    "json_object": ('{"a": 1}', "x", ""),
    "regex": ("ab", "c", "ab"),
    "choice": ('y"', "n", '["y\\""]'),
    "ebnf": ("z", "x", 'root ::= "z"'),
    "structural_tag": ("q", "x", '{"format": {"type": "const_string", "value": "q"}}'),
}


@SPECIAL
@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("opening", ["before", "inside"])
def test_answers_after_reasoning(special: bool, kind: Any, opening: Any) -> None:
    good, bad, source = ANSWERS[kind]
    plan = plan_of("hermes", special, think=True, opening=opening, choice="none")
    grammar = Grammar(plan, special, ("structured_outputs", GrammarSpec(kind, source)))
    start = "<think>" if opening == "before" else ""

    assert grammar.takes(f"{start}why {bad} < /think></think>\n\n{good}") is True
    assert grammar.takes(f"{start}why</think>{bad}") is False
    assert grammar.takes(good) is (True if opening == "before" else None)
    assert grammar.read(f"{start}why</think>\n{good}") == (good, [])


def test_an_answer_after_harmonys_reasoning() -> None:
    plan = plan_of("harmony", True, choice="none")
    grammar = Grammar(plan, True, JSON_ANSWER)
    why = "<|channel|>analysis<|message|>why<|end|><|start|>assistant"

    assert grammar.takes(f'{why}<|channel|>final<|message|>{{"x": 1}}') is True
    assert grammar.takes(f"{why}<|channel|>final<|message|>no") is False


@SPECIAL
@pytest.mark.parametrize("name", ["hermes", "deepseek_v31", "mistral"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_after_reasoning(name: str, special: bool, choice: Any) -> None:
    plan = plan_of(name, special, think=True, opening="before", choice=choice)
    grammar = Grammar(plan, special)

    assert grammar.takes(f"<think>why</think>\n{written(name, GOOD)}") is True
    assert grammar.takes(f"<think>why</think>\n{written(name, BAD)}") is False
    assert grammar.takes(written(name, GOOD)) is True
    assert grammar.takes("<think>why") is (True if choice == "auto" else None)


def test_control_tokens_are_in_free_text_alone() -> None:
    grammar = Grammar(plan_of("hermes", True), True)
    inside = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "'

    assert grammar.takes("a<other>b") is True
    assert grammar.takes(inside + "Par") is None
    assert grammar.takes(inside + "Par<other>") is False


TEXT = {"$ref": "#/$defs/s", "$defs": {"s": {"type": "string"}}}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("hermes", TEXT),
        ("hermes", {"anyOf": [{"type": "object"}, {"enum": ["x"]}]}),
        ("hermes", {"$ref": "#"}),
        ("pythonic", {"type": "object", "properties": {"a": {"$ref": "#"}}}),
        ("pythonic", {"type": "object", "properties": {"a": {}}, "minProperties": 1}),
        ("qwen3_coder", {"type": "object", "properties": {"a": {}}, "maxProperties": 0}),
        ("pythonic", {"type": "object", "properties": {"a": {}, "b": {"$ref": "#/properties/a"}}}),
    ],
)
def test_arguments_must_be_an_object_that_can_be_written(
    name: str, parameters: dict[str, Any]
) -> None:
    function = {"name": "f", "parameters": parameters, "strict": True}
    plan = ReplyPlan(
        dialect=Dialect(tools=format_named(name)),
        opening="after",
        names=frozenset({"f"}),
        tools=(FunctionTool.model_validate({"function": function}),),
    )
    with pytest.raises(InvalidRequest, match=r"tools\.0\.function\.parameters"):
        plan.grammar(None)


def test_keyword_arguments_of_any_name_and_one_schema() -> None:
    parameters = {"type": "object", "additionalProperties": {"$ref": "#/$defs/small"}}
    parameters["$defs"] = {"small": {"type": "integer", "maximum": 5}}
    function = {"name": "f", "parameters": parameters, "strict": True}
    plan = ReplyPlan(
        dialect=Dialect(tools=format_named("pythonic")),
        opening="after",
        names=frozenset({"f"}),
        choice="required",
        tools=(FunctionTool.model_validate({"function": function}),),
    )
    grammar = Grammar(plan, False)

    assert grammar.takes("[f(a=5, b=4)]") is True
    assert grammar.takes("[f(a=6)]") is False
    assert grammar.takes('[f(a="x")]') is False


def test_arguments_may_be_one_of_several_objects() -> None:
    parameters = {
        "anyOf": [{"type": "object", "properties": {"a": {}}}, {"$ref": "#/$defs/b~1"}],
        "$defs": {"b/": {"enum": [{}]}},
    }
    function = {"name": "f", "parameters": parameters, "strict": True}
    plan = ReplyPlan(
        dialect=Dialect(tools=format_named("hermes")),
        opening="after",
        names=frozenset({"f"}),
        tools=(FunctionTool.model_validate({"function": function}),),
    )
    assert plan.grammar(None)[1] == []


def test_what_cannot_be_enforced() -> None:
    odd = {"type": "object", "properties": {"a": {"not": {}}}}
    loose = FunctionTool.model_validate({"function": {"name": "f", "parameters": odd}})
    strict = FunctionTool.model_validate(
        {"function": {"name": "f", "parameters": odd, "strict": True}}
    )
    dialect = Dialect(tools=format_named("hermes"))

    def plan(tool: FunctionTool) -> ReplyPlan:
        names = frozenset({"f"})
        return ReplyPlan(dialect=dialect, opening="after", names=names, tools=(tool,))

    grammar = Grammar(plan(loose), False)
    assert grammar.takes('<tool_call>\n{"name": "f", "arguments": {"b": [1]}}\n</tool_call>')
    assert len(grammar.warnings) == 1 and "'not' at $.properties.a" in grammar.warnings[0]
    with pytest.raises(InvalidRequest, match=r"tools\.0\.function\.parameters"):
        plan(strict).grammar(None)

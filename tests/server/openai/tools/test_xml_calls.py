"""Calls whose arguments stand between tags: what a value is, and what a grammar lets it be."""

import json
import random
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from tool_grammars import MARKS, Grammar, tokenizer_with
from tool_models import call_text

from quire.server.errors import InvalidRequest
from quire.server.openai.tools.dialect import Dialect
from quire.server.openai.tools.formats import FORMATS, format_named
from quire.server.openai.tools.plan import ReplyPlan
from quire.server.openai.tools.request import FunctionTool
from quire.server.openai.tools.xml_arguments import Parameter

EVERY = pytest.mark.parametrize("name", [row.name for row in FORMATS if row.family == "xml"])
SPECIAL = pytest.mark.parametrize("special", [False, True], ids=["text", "control"])


def written(name: str, arguments: Mapping[str, Any]) -> str:
    """A call of `f`."""
    format_ = format_named(name)
    return format_.before + call_text(format_, "f", arguments) + format_.after


UNION = {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}, {"type": "object"}]}
CHOICE = {"enum": ["a b", "5", 7, None]}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, "", ""),
        ({"type": "string"}, ' "a" ', ' "a" '),
        ({"type": "string"}, "\na\n\n", "\na\n\n"),
        ({"type": "integer"}, " 5 ", 5),
        ({"type": "integer"}, "five", "five"),
        ({"type": "number"}, "5", 5),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "array"}, "[1, '2']", "[1, '2']"),
        ({"type": "array"}, '["</tool_call>"]', ["</tool_call>"]),
        ({"type": "boolean"}, "true", True),
        (UNION, "5", 5),
        (UNION, "5.0", 5.0),
        (UNION, "5.5", "5.5"),
        (UNION, "[5]", "[5]"),
        (UNION, '{"a": 1}', {"a": 1}),
        (UNION, "null", None),
        (UNION, "nil", "nil"),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"type": ["string", "null"]}, "null", None),
        (CHOICE, "5", "5"),
        (CHOICE, "7", 7),
        (CHOICE, "a b", "a b"),
        (CHOICE, "null", None),
        ({"$ref": "#/$defs/text"}, "5", "5"),
        ({"$ref": "#/$defs/loop"}, "x", "x"),
        ({}, "5", 5),
        ({}, "five", "five"),
        (None, '"five"', '"five"'),
    ],
)
@EVERY
def test_the_schema_tells_what_a_value_between_tags_is(
    name: str, schema: Any, text: str, value: Any
) -> None:
    whole = {
        "properties": {} if schema is None else {"k": schema},
        "$defs": {"text": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}},
    }
    dialect = Dialect(tools=format_named(name))
    # A string is written as it is; so is the text of any other value.
    reply = written(name, {"k": text})
    for chunks in ([reply], list(reply)):
        parser = dialect.parser(frozenset({"f"}), "after", schemas={"f": whole})
        assert parser is not None
        events = [event for chunk in chunks for event in parser.feed(chunk)] + parser.finish()
        assert [event.kind for event in events if event.kind in ("call", "end")] == ["call", "end"]
        assert not any(text for kind, text in events if kind == "content")
        arguments = "".join(text for kind, text in events if kind == "arguments")
        assert json.loads(arguments) == {"k": value}
        assert type(json.loads(arguments)["k"]) is type(value)


def grammar_of(
    name: str, properties: dict[str, Any], special: bool = False, **more: Any
) -> Grammar:
    known = tokenizer_with(special).special_tokens
    parameters = {"type": "object", "properties": properties, "required": [*properties], **more}
    function = {"name": "f", "parameters": parameters, "strict": True}
    plan = ReplyPlan(
        dialect=Dialect(
            tools=format_named(name),
            specials={mark: known[mark] for mark in MARKS if mark in known},
        ),
        opening="after",
        names=frozenset({"f"}),
        choice="required",
        is_parallel=False,
        tools=(FunctionTool.model_validate({"function": function}),),
    )
    return Grammar(plan, special)


PROPERTIES: dict[str, Any] = {
    "text": {"type": "string"},
    "short": {"type": "string", "maxLength": 3},
    "long": {"type": "string", "minLength": 2},
    "code": {"type": "string", "pattern": "^[a-f]{2}-[0-9]$"},
    "count": {"type": "integer", "minimum": 1, "maximum": 20},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "few": {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "boolean"}]},
    "choice": {"enum": ["a b", "5", 7, None]},
    "words": {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 2},
    "pair": {"$ref": "#/$defs/pair"},
}
DEFS = {
    "pair": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "boolean"}},
        "required": ["a"],
    }
}


@EVERY
@pytest.mark.parametrize("key", PROPERTIES)
def test_what_may_be_written_is_of_the_schema(name: str, key: str) -> None:
    is_special = name == "glm47"
    grammar = grammar_of(name, {key: PROPERTIES[key]}, is_special, **{"$defs": DEFS})
    schema = {"type": "object", "properties": {key: PROPERTIES[key]}, "$defs": DEFS}
    rng = random.Random(key)
    texts = [grammar.walk(rng, steps=120) for _ in range(2)]
    for text in filter(None, texts):
        content, calls = grammar.read(text)
        assert content == ""
        ((called, arguments),) = calls
        assert called == "f"
        jsonschema.validate(json.loads(arguments), {**schema, "required": [key]})


@EVERY
@SPECIAL
@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("text", ["", "a\n\n", "null", '{"', "日本 < 5"], []),
        ("short", ["", "abc"], ["abcd"]),
        ("long", ["ab", "a long text"], ["a"]),
        ("code", ["ab-1"], ["ab", "ab-1\n"]),
        ("count", [7], [0, 21, "x", 1.5]),
        ("maybe", ["x", "null", None], []),
        ("few", ["ab", True], ["abc"]),
        ("choice", ["a b", "5", 7, None], ["b", 8]),
        ("words", [[], ["a", "b"]], [["abc"], "a"]),
        ("pair", [{"a": 1.5}, {"a": 1, "b": False}], [{"b": True}, "a"]),
    ],
)
def test_values_that_may_be_written(
    name: str, special: bool, key: str, good: list[Any], bad: list[Any]
) -> None:
    grammar = grammar_of(name, {key: PROPERTIES[key]}, special, **{"$defs": DEFS})
    for value in good:
        assert grammar.takes(written(name, {key: value})) is True, value
        content, ((_, arguments),) = grammar.read(written(name, {key: value}))
        expected = None if key == "maybe" and value == "null" else value
        assert (content, json.loads(arguments)) == ("", {key: expected})
    for value in bad:
        assert grammar.takes(written(name, {key: value})) is False, value


@EVERY
@pytest.mark.parametrize("value", [{"type": "string"}, {"type": "array"}, {}])
def test_no_value_holds_the_tag_that_closes_it(name: str, value: dict[str, Any]) -> None:
    grammar = grammar_of(name, {"k": value})
    closing = format_named(name).argument.partition("VALUE")[2].strip()

    assert grammar.takes(written(name, {"k": ["a <b> /c"]})) is True
    assert grammar.takes(written(name, {"k": [f"a{closing}b"]})) is False


@EVERY
def test_arguments_without_a_schema(name: str) -> None:
    grammar = grammar_of(name, {}, additionalProperties=True)
    text = written(name, {"a": "x", "b_1": 5})

    assert grammar.takes(text) is True
    assert grammar.read(text) == ("", [("f", '{"a": "x", "b_1": 5}')])
    assert grammar.takes(written(name, {})) is True


@EVERY
def test_arguments_of_any_name_and_one_schema(name: str) -> None:
    more = {"type": "integer", "minimum": 3}
    grammar = grammar_of(name, {}, additionalProperties=more)

    assert grammar.takes(written(name, {"a": 5, "b": 6})) is True
    assert grammar.takes(written(name, {"a": 2})) is False
    assert grammar.takes(written(name, {"a": "x"})) is False

    grammar = grammar_of(name, {}, additionalProperties={"type": "string"})
    assert grammar.read(written(name, {"a": "5"})) == ("", [("f", '{"a": "5"}')])
    assert grammar_of(name, {}, additionalProperties={}).takes(written(name, {"a": 5})) is True
    assert grammar_of(name, {}, additionalProperties=False).takes(written(name, {"a": 5})) is False


@EVERY
def test_values_of_a_list_that_are_not_of_the_type_may_not_be_written(name: str) -> None:
    grammar = grammar_of(name, {"k": {"type": ["integer", "null"], "enum": ["a", 1, None, True]}})

    assert [grammar.takes(written(name, {"k": value})) for value in ("a", 1, None, True)] == [
        False,
        True,
        True,
        False,
    ]


def test_schemas_that_refer_to_themselves_many_times() -> None:
    """Followed along each way there would be more of them than atoms."""
    many = [{"$ref": "#/$defs/n"}] * 100
    tree = {"$defs": {"n": {"anyOf": [*many, {"type": "integer"}]}}}
    found = Parameter.of({"$ref": "#/$defs/n"}, tree)
    assert [leaf["type"] for leaf in (*found.strings, *found.others)] == ["integer"]

    chain: dict[str, Any] = {
        f"n{i}": {"anyOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 2} for i in range(3000)
    }
    chain["n3000"] = {"type": "string"}
    assert Parameter.of({"$ref": "#/$defs/n0"}, {"$defs": chain}).is_text

    objects: dict[str, Any] = {
        f"n{i}": {"anyOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 2} for i in range(60)
    }
    objects["n60"] = {"type": "object", "properties": {}}
    function = {"name": "f", "parameters": {"$ref": "#/$defs/n0", "$defs": objects}}
    plan = ReplyPlan(
        dialect=Dialect(tools=format_named("hermes")),
        opening="after",
        names=frozenset({"f"}),
        tools=(FunctionTool.model_validate({"function": function}),),
    )
    assert plan.grammar(None)[1] == []


@pytest.mark.parametrize(
    "properties",
    [
        {"a b": {"type": "string"}},
        {"a>": {"type": "string"}},
        {"k": {"type": "string", "format": "date"}},
        {"k": {"type": "string", "pattern": "^.*$"}},
        {"k": {"type": "string", "pattern": "[!-~]+"}},
        {"k": {"type": "array", "items": {"type": "string", "pattern": "[^a]"}}},
        {"k": {"enum": ["a</parameter>", "b"]}},
        {"k": {"enum": ["", "b"]}},
        {"k": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]}},
        {"k": {"anyOf": [{"enum": ["a"]}, {"type": "array", "items": {"type": "null"}}]}},
    ],
)
def test_what_cannot_be_enforced_between_tags(properties: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"tools\.0\.function\.parameters"):
        grammar_of("qwen3_coder", properties)

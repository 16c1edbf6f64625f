"""Which texts a reply with tools, or with reasoning before its JSON, may be, as structural tags."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.pipelines.core.grammar import GrammarSpec
from quire.server.openai.tools.dialect import Dialect, Opening
from quire.server.openai.tools.formats import ToolFormat
from quire.server.openai.tools.structural_tag import (
    Marks,
    Node,
    either,
    json_node,
    optional,
    sequence,
    spec_of,
    string,
    with_definitions,
)
from quire.server.openai.tools.xml_grammar import XmlArguments

_SPACES: Node = {"type": "regex", "pattern": r"[ \n]{0,4}"}
_INDEX: Node = {"type": "regex", "pattern": r"[0-9]{1,4}"}
_TEXT: Node = {"type": "any_text"}


@dataclass(frozen=True, kw_only=True)
class CallRules:
    """The functions that may be called, with what their arguments may be, and how often."""

    arguments: Mapping[str, Node]
    is_required: bool = False
    is_parallel: bool = True


def arguments_node(dialect: Dialect, schema: Mapping[str, Any], given: Mapping[str, Any]) -> Node:
    """A function's arguments as the model writes them, of the enforceable `schema` that was made of
    the `given` one.

    Raises:
        NotEnforceable: written in this way they are not.
    """
    assert dialect.tools is not None
    if dialect.tools.family == "pythonic":
        return _keywords(schema)
    if dialect.tools.family == "xml":
        return XmlArguments(dialect.tools, Marks(dialect.specials)).node(schema, given)
    return json_node(schema)


def tool_grammar(
    dialect: Dialect, rules: CallRules, opening: Opening, answer: GrammarSpec | None = None
) -> GrammarSpec:
    """The replies that `rules` allow: calls, or text where none is required.

    With an `answer` the text is one of its grammar, and the calls are all or nothing.
    """
    marks = Marks(dialect.specials)
    assert dialect.tools is not None
    if dialect.is_harmony:
        return spec_of(_harmony(marks, rules, None if answer is None else answer_node(answer)))
    block = _block(dialect.tools, marks, rules)
    if rules.is_required:
        node = block
    elif answer is not None:
        node = either([block, answer_node(answer)])
    else:
        node = _triggered(dialect.tools, marks, rules, block)
    return spec_of(_after_reasoning(dialect, marks, opening, node))


def answer_grammar(dialect: Dialect, opening: Opening, answer: GrammarSpec) -> GrammarSpec:
    """`answer`, preceded by the reasoning that the model may begin with."""
    marks = Marks(dialect.specials)
    if dialect.is_harmony:
        return spec_of(_harmony(marks, CallRules(arguments={}), answer_node(answer)))
    if dialect.think is None or opening == "after":
        return answer
    return spec_of(_after_reasoning(dialect, marks, opening, answer_node(answer)))


def answer_node(spec: GrammarSpec) -> Node:
    """A grammar as a part of a structural tag.

    Raises:
        ValueError: a structural tag of the older form, which cannot be a part.
    """
    match spec.kind:
        case "json_schema":
            return json_node(json.loads(spec.source))
        case "json_object":
            return json_node({"type": "object"})
        case "regex":
            return {"type": "regex", "pattern": spec.source}
        case "choice":
            return either([string(choice) for choice in json.loads(spec.source)])
        case "ebnf":
            return {"type": "grammar", "grammar": spec.source}
        case "structural_tag":
            tag = json.loads(spec.source)
            if isinstance(tag, dict) and isinstance(tag.get("format"), dict):
                node: Node = tag["format"]
                return node
    raise ValueError("a structural tag without 'format' cannot follow reasoning or tools")


def _tag(nodes: Sequence[Node]) -> Node:
    """A sequence as a tag, which begins and, if it can, ends with a string or token."""
    begin, end = _border(nodes[0]), _border(nodes[-1])
    inner = nodes[1:] if end is None else nodes[1:-1]
    return {"type": "tag", "begin": begin, "content": sequence(inner), "end": end or ""}


def _border(node: Node) -> Node | str | None:
    if node["type"] == "const_string":
        value: str = node["value"]
        return value
    return node if node["type"] == "token" else None


def _call(format_: ToolFormat, marks: Marks, name: str, arguments: Node) -> Node:
    before, _, after = format_.call.partition("ARGUMENTS")
    before, counts, between = before.partition("INDEX")
    nodes = marks.nodes(before.replace("NAME", name))
    if counts:
        nodes += [_INDEX, *marks.nodes(between)]
    return _tag([*nodes, arguments, *marks.nodes(after)])


def _block(format_: ToolFormat, marks: Marks, rules: CallRules) -> Node:
    """One call or more, with what is written before, between and after them."""
    calls: Node = {
        "type": "tags_with_separator",
        "tags": [_call(format_, marks, *item) for item in rules.arguments.items()],
        "separator": format_.between,
        "at_least_one": True,
        "stop_after_first": not rules.is_parallel,
    }
    nodes = [*marks.nodes(format_.before), calls, *marks.nodes(format_.after)]
    if format_.is_bare:
        opened = (sequence(marks.nodes(opening)) for opening in format_.openings)
        nodes.insert(0, optional(either(list(opened))))
        if format_.closings:
            closed = (sequence(marks.nodes(closing)) for closing in format_.closings)
            nodes.append(optional(either(list(closed))))
    return sequence(nodes)


def _triggered(format_: ToolFormat, marks: Marks, rules: CallRules, block: Node) -> Node:
    """Free text, in which the opening of a call must begin one."""
    if format_.is_bare:
        tags = _bare_tags(format_, rules)
        triggers = [marks.nodes(tag["begin"])[0] for tag in tags]
    else:
        tags = (
            [_tag(block["elements"])]
            if format_.before
            else [_call(format_, marks, *item) for item in rules.arguments.items()]
        )
        triggers = marks.nodes(format_.openings[0])[:1]
    limits = {"tags": tags, "stop_after_first": not rules.is_parallel}
    if triggers[0]["type"] == "token":
        return {"type": "token_triggered_tags", "trigger_tokens": [triggers[0]["token"]], **limits}
    strings = [trigger["value"] for trigger in triggers]
    return {"type": "triggered_tags", "triggers": strings, **limits}


def _bare_tags(format_: ToolFormat, rules: CallRules) -> list[Node]:
    """Calls that only their functions' names give away. Each is a tag of its own, since telling
    other beginnings apart character by character takes seconds to compile."""
    before, _, after = format_.call.partition("ARGUMENTS")
    starts = [format_.before, format_.between] if format_.before else [""]
    if not rules.is_parallel:
        starts, after = starts[:1], after + format_.after
    return [
        {
            "type": "tag",
            "begin": start + before.replace("NAME", name),
            "content": arguments,
            "end": after,
        }
        for start in starts
        for name, arguments in rules.arguments.items()
    ]


def _after_reasoning(dialect: Dialect, marks: Marks, opening: Opening, node: Node) -> Node:
    if dialect.think is None or opening == "after":
        return node
    before, after = (marks.nodes(mark) for mark in dialect.think)
    if after[0]["type"] == "token":
        rest: Node = sequence([_TEXT, *after])
    else:
        rest = {"type": "tag", "begin": "", "content": _TEXT, "end": dialect.think.closing}
    if opening == "before":
        rest = optional(sequence([*before, rest]))
    return sequence([rest, _SPACES, node])


def _keywords(schema: Mapping[str, Any]) -> Node:
    """Python's keyword arguments, with values as JSON writes them."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    kept = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    value = with_definitions(schema.get("additionalProperties", True), kept)
    if not properties and value is not False:
        pair = sequence(
            [{"type": "regex", "pattern": r"[A-Za-z_][A-Za-z_0-9]*="}, json_node(value)]
        )
        more = {"type": "star", "content": sequence([string(", "), pair])}
        return optional(sequence([pair, more]))
    pairs = {
        name: sequence([string(f"{name}="), json_node(with_definitions(value, kept))])
        for name, value in properties.items()
    }
    needed = set(schema.get("required", ()))
    first = [pairs[name] for name in pairs if name in needed]
    rest = [pairs[name] for name in pairs if name not in needed]
    comma = string(", ")
    nodes = [node for pair in first for node in (comma, pair)][1:]
    if nodes or not rest:
        nodes += [optional(sequence([comma, pair])) for pair in rest]
        return sequence(nodes or [string("")])
    starts = [
        sequence([pair, *(optional(sequence([comma, other])) for other in rest[at + 1 :])])
        for at, pair in enumerate(rest)
    ]
    return optional(either(starts))


def _harmony(marks: Marks, rules: CallRules, answer: Node | None) -> Node:
    """Messages of reasoning and remarks, then an answer or a call, which ends the reply."""
    asides = either(
        [
            sequence([*marks.nodes(f"<|channel|>{name}<|message|>"), _TEXT])
            for name in ("analysis", "commentary")
        ]
    )
    next_ = marks.nodes("<|end|><|start|>assistant")
    last = [
        sequence(
            [
                *marks.nodes(
                    f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
                ),
                arguments,
            ]
        )
        for name, arguments in rules.arguments.items()
    ]
    if not rules.is_required:
        last.append(sequence([*marks.nodes("<|channel|>final<|message|>"), answer or _TEXT]))
    return sequence([{"type": "star", "content": sequence([asides, *next_])}, either(last)])

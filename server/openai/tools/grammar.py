"""Structural tags: which texts a reply with tools, or with reasoning before its JSON, may be.

A structural tag is xgrammar's JSON description of a grammar whose parts are strings, control
tokens, JSON Schemas and free text; https://xgrammar.mlc.ai/docs/structural_tag/.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from quire.pipelines.core.grammar import GrammarSpec
from quire.server.openai.tools.dialect import Dialect, Opening
from quire.server.openai.tools.formats import ToolFormat

Node = dict[str, Any]

MAX_WHITESPACE = 20
"""Between two tokens of JSON."""
_SPACES: Node = {"type": "regex", "pattern": r"[ \n]{0,4}"}
_TEXT: Node = {"type": "any_text"}


@dataclass(frozen=True, kw_only=True)
class CallRules:
    """The functions that may be called, with the schemas of their arguments, and how often."""

    schemas: Mapping[str, Mapping[str, Any]]
    is_required: bool = False
    is_parallel: bool = True


def tool_grammar(
    dialect: Dialect, rules: CallRules, opening: Opening, answer: GrammarSpec | None = None
) -> GrammarSpec:
    """The replies that `rules` allow: calls, or text where none is required.

    With an `answer` the text is one of its grammar, and the calls are all or nothing.
    """
    marks = _Marks(dialect.specials)
    assert dialect.tools is not None
    if dialect.is_harmony:
        return _spec(_harmony(marks, rules, None if answer is None else answer_node(answer)))
    block = _block(dialect.tools, marks, rules)
    if rules.is_required:
        node = block
    elif answer is not None:
        node = _either([block, answer_node(answer)])
    else:
        node = _triggered(dialect.tools, marks, rules, block)
    return _spec(_after_reasoning(dialect, marks, opening, node))


def answer_grammar(dialect: Dialect, opening: Opening, answer: GrammarSpec) -> GrammarSpec:
    """`answer`, preceded by the reasoning that the model may begin with."""
    marks = _Marks(dialect.specials)
    if dialect.is_harmony:
        return _spec(_harmony(marks, CallRules(schemas={}), answer_node(answer)))
    if dialect.think is None or opening == "after":
        return answer
    return _spec(_after_reasoning(dialect, marks, opening, answer_node(answer)))


def answer_node(spec: GrammarSpec) -> Node:
    """A grammar as a part of a structural tag.

    Raises:
        ValueError: a structural tag of the older form, which cannot be a part.
    """
    match spec.kind:
        case "json_schema":
            return _json(json.loads(spec.source))
        case "json_object":
            return _json({"type": "object"})
        case "regex":
            return {"type": "regex", "pattern": spec.source}
        case "choice":
            return _either([_string(choice) for choice in json.loads(spec.source)])
        case "ebnf":
            return {"type": "grammar", "grammar": spec.source}
        case "structural_tag":
            tag = json.loads(spec.source)
            if isinstance(tag, dict) and isinstance(tag.get("format"), dict):
                node: Node = tag["format"]
                return node
    raise ValueError("a structural tag without 'format' cannot follow reasoning or tools")


class _Marks:
    """Spells text whose markers may be control tokens."""

    def __init__(self, specials: Mapping[str, int]) -> None:
        self._specials = specials

    def nodes(self, text: str) -> list[Node]:
        """Strings and control tokens."""
        nodes: list[Node] = []
        while text:
            found = [(at, mark) for mark in self._specials if (at := text.find(mark)) >= 0]
            at, mark = min(found, default=(len(text), ""))
            if at:
                nodes.append(_string(text[:at]))
            if mark:
                nodes.append({"type": "token", "token": self._specials[mark]})
            text = text[at + len(mark) :]
        return nodes


def _spec(node: Node) -> GrammarSpec:
    tag = {"type": "structural_tag", "format": node}
    return GrammarSpec("structural_tag", orjson.dumps(tag).decode())


def _string(value: str) -> Node:
    return {"type": "const_string", "value": value}


def _json(schema: Any) -> Node:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": MAX_WHITESPACE}


def _sequence(nodes: Sequence[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else {"type": "sequence", "elements": list(nodes)}


def _either(nodes: Sequence[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else {"type": "or", "elements": list(nodes)}


def _optional(node: Node) -> Node:
    return {"type": "optional", "content": node}


def _tag(nodes: Sequence[Node]) -> Node:
    """A sequence as a tag, which begins and, if it can, ends with a string or token."""
    begin, end = _border(nodes[0]), _border(nodes[-1])
    inner = nodes[1:] if end is None else nodes[1:-1]
    return {"type": "tag", "begin": begin, "content": _sequence(inner), "end": end or ""}


def _border(node: Node) -> Node | str | None:
    if node["type"] == "const_string":
        value: str = node["value"]
        return value
    return node if node["type"] == "token" else None


def _call(format_: ToolFormat, marks: _Marks, name: str, schema: Mapping[str, Any]) -> Node:
    before, _, after = format_.call.partition("ARGUMENTS")
    arguments = _arguments(format_, schema)
    return _tag([*marks.nodes(before.replace("NAME", name)), arguments, *marks.nodes(after)])


def _arguments(format_: ToolFormat, schema: Mapping[str, Any]) -> Node:
    return _keywords(schema) if format_.family == "pythonic" else _json(schema)


def _block(format_: ToolFormat, marks: _Marks, rules: CallRules) -> Node:
    """One call or more, with what is written before, between and after them."""
    calls: Node = {
        "type": "tags_with_separator",
        "tags": [_call(format_, marks, *item) for item in rules.schemas.items()],
        "separator": format_.between,
        "at_least_one": True,
        "stop_after_first": not rules.is_parallel,
    }
    nodes = [*marks.nodes(format_.before), calls, *marks.nodes(format_.after)]
    if format_.is_bare:
        opened = (_sequence(marks.nodes(opening)) for opening in format_.openings)
        nodes.insert(0, _optional(_either(list(opened))))
        if format_.closings:
            closed = (_sequence(marks.nodes(closing)) for closing in format_.closings)
            nodes.append(_optional(_either(list(closed))))
    return _sequence(nodes)


def _triggered(format_: ToolFormat, marks: _Marks, rules: CallRules, block: Node) -> Node:
    """Free text, in which the opening of a call must begin one."""
    if format_.is_bare:
        tags = _bare_tags(format_, rules)
        triggers = [marks.nodes(tag["begin"])[0] for tag in tags]
    else:
        tags = (
            [_tag(block["elements"])]
            if format_.before
            else [_call(format_, marks, *item) for item in rules.schemas.items()]
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
            "content": _arguments(format_, schema),
            "end": after,
        }
        for start in starts
        for name, schema in rules.schemas.items()
    ]


def _after_reasoning(dialect: Dialect, marks: _Marks, opening: Opening, node: Node) -> Node:
    if dialect.think is None or opening == "after":
        return node
    before, after = (marks.nodes(mark) for mark in dialect.think)
    if after[0]["type"] == "token":
        rest: Node = _sequence([_TEXT, *after])
    else:
        rest = {"type": "tag", "begin": "", "content": _TEXT, "end": dialect.think.closing}
    if opening == "before":
        rest = _optional(_sequence([*before, rest]))
    return _sequence([rest, _SPACES, node])


def _keywords(schema: Mapping[str, Any]) -> Node:
    """Python's keyword arguments, with values as JSON writes them."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    if not properties and schema.get("additionalProperties", True):
        pair = _sequence([{"type": "regex", "pattern": r"[A-Za-z_][A-Za-z_0-9]*="}, _json(True)])
        more = {"type": "star", "content": _sequence([_string(", "), pair])}
        return _optional(_sequence([pair, more]))
    kept = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    pairs = {
        name: _sequence([_string(f"{name}="), _json(_with_definitions(value, kept))])
        for name, value in properties.items()
    }
    needed = set(schema.get("required", ()))
    first = [pairs[name] for name in pairs if name in needed]
    rest = [pairs[name] for name in pairs if name not in needed]
    comma = _string(", ")
    nodes = [node for pair in first for node in (comma, pair)][1:]
    if nodes or not rest:
        nodes += [_optional(_sequence([comma, pair])) for pair in rest]
        return _sequence(nodes or [_string("")])
    starts = [
        _sequence([pair, *(_optional(_sequence([comma, other])) for other in rest[at + 1 :])])
        for at, pair in enumerate(rest)
    ]
    return _optional(_either(starts))


def _with_definitions(schema: Any, definitions: Mapping[str, Any]) -> Any:
    return {**schema, **definitions} if isinstance(schema, dict) else schema


def _harmony(marks: _Marks, rules: CallRules, answer: Node | None) -> Node:
    """Messages of reasoning and remarks, then an answer or a call, which ends the reply."""
    asides = _either(
        [
            _sequence([*marks.nodes(f"<|channel|>{name}<|message|>"), _TEXT])
            for name in ("analysis", "commentary")
        ]
    )
    next_ = marks.nodes("<|end|><|start|>assistant")
    last = [
        _sequence(
            [
                *marks.nodes(
                    f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
                ),
                _json(schema),
            ]
        )
        for name, schema in rules.schemas.items()
    ]
    if not rules.is_required:
        last.append(_sequence([*marks.nodes("<|channel|>final<|message|>"), answer or _TEXT]))
    return _sequence([{"type": "star", "content": _sequence([asides, *next_])}, _either(last)])

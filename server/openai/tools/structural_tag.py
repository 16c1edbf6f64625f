"""Structural tags: xgrammar's JSON description of a grammar, whose parts are strings, control tokens,
JSON Schemas and free text; https://xgrammar.mlc.ai/docs/structural_tag/.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from quire.pipelines.core.grammar import GrammarSpec

Node = dict[str, Any]

MAX_WHITESPACE = 20
"""Between two tokens of JSON."""


class Marks:
    """Spells text whose markers may be control tokens, of which `specials` has the ids."""

    def __init__(self, specials: Mapping[str, int]) -> None:
        self._specials = specials

    def nodes(self, text: str) -> list[Node]:
        """Strings and control tokens."""
        nodes: list[Node] = []
        while text:
            found = [(at, mark) for mark in self._specials if (at := text.find(mark)) >= 0]
            at, mark = min(found, default=(len(text), ""))
            if at:
                nodes.append(string(text[:at]))
            if mark:
                nodes.append({"type": "token", "token": self._specials[mark]})
            text = text[at + len(mark) :]
        return nodes


def spec_of(node: Node) -> GrammarSpec:
    tag = {"type": "structural_tag", "format": node}
    return GrammarSpec("structural_tag", orjson.dumps(tag).decode())


def string(value: str) -> Node:
    return {"type": "const_string", "value": value}


def json_node(schema: Any) -> Node:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": MAX_WHITESPACE}


def sequence(nodes: Sequence[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else {"type": "sequence", "elements": list(nodes)}


def either(nodes: Sequence[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else {"type": "or", "elements": list(nodes)}


def optional(node: Node) -> Node:
    return {"type": "optional", "content": node}


def with_definitions(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """`schema` by itself: with the root's definitions, to which it may refer."""
    return {**schema, **definitions} if isinstance(schema, dict) else schema

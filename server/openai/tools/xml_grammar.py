"""What a grammar lets a model write as arguments between tags."""

import re
from collections.abc import Mapping
from typing import Any

from quire.pipelines.structured.json_schema import (
    ANNOTATIONS,
    PLAIN_CHARACTER,
    NotEnforceable,
    repeated,
)
from quire.server.openai.tools.formats import ToolFormat
from quire.server.openai.tools.structural_tag import (
    Marks,
    Node,
    either,
    json_node,
    optional,
    sequence,
    string,
    with_definitions,
)
from quire.server.openai.tools.xml_arguments import Parameter, parameter_of

_NAME: Node = {"type": "regex", "pattern": r"[A-Za-z_][A-Za-z_0-9]*"}
_UNWRITABLE = re.compile(r"[<>\"\s]|^$")
_MAY_HOLD_TAG = re.compile(r"<|\[\^|\\[SWDxupPc]|(?<!\\)\.|[ -<]-[<-\uffff]")
"""In a pattern: what lets it match a text that holds one."""
_UNTAGGED = r"[\t\n\r -;=-" + "\ud7ff\ue000-\U0010ffff]"
"""A character of a text that holds no tag."""
_UNTAGGED_IN_JSON = PLAIN_CHARACTER.replace("#-", "#-;=-")


class XmlArguments:
    """Arguments as `format_` writes them.

    Where the tag that closes a value is not a control token, no value holds its text.
    """

    def __init__(self, format_: ToolFormat, marks: Marks) -> None:
        self._before_key, _, rest = format_.argument.partition("KEY")
        self._after_key, _, self._end = rest.partition("VALUE")
        self._marks = marks
        closing = self._end.strip()
        is_token = marks.nodes(closing)[0]["type"] == "token"
        self._excludes: Mapping[str, Any] = {} if is_token else {"excludes": [closing]}
        self._text: Node = {"type": "any_text", **self._excludes}

    def node(self, schema: Mapping[str, Any], given: Mapping[str, Any]) -> Node:
        """Arguments of the enforceable `schema`, which was made of the `given` one.

        Raises:
            NotEnforceable: between tags it is not.
        """
        properties: Mapping[str, Any] = schema.get("properties", {})
        definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        more = schema.get("additionalProperties", True)
        if not properties and more is not False:
            values = [self._text]
            if more not in (True, {}):
                path = "$.additionalProperties"
                parameter = parameter_of("", given)
                values = self._values(parameter, with_definitions(more, definitions), path)
            before = [*self._marks.nodes(self._before_key), _NAME]
            content = [*before, *self._marks.nodes(self._after_key), either(values)]
            return {"type": "star", "content": sequence([*content, *self._marks.nodes(self._end)])}
        nodes: list[Node] = []
        for name, value in properties.items():
            path = f"$.properties.{name}"
            if _UNWRITABLE.search(name):
                raise NotEnforceable(f"{name!r:.80} at $.properties cannot be written in a tag")
            values = self._values(
                parameter_of(name, given), with_definitions(value, definitions), path
            )
            before = self._marks.nodes(f"{self._before_key}{name}{self._after_key}")
            node = sequence([*before, either(values), *self._marks.nodes(self._end)])
            nodes.append(node if name in schema.get("required", ()) else optional(node))
        return sequence(nodes) if nodes else string("")

    def _values(self, parameter: Parameter, schema: Any, path: str) -> list[Node]:
        """What `parameter` may be, of the enforceable `schema`."""
        if not parameter.strings and not parameter.literals:
            return [self._json(self._untagged(schema, path))]
        nodes = [self._string(leaf, path) for leaf in parameter.strings]
        for text in parameter.literals:
            if not text or any(closing in text for closing in self._excludes.get("excludes", ())):
                raise _refusal("enum", path, f": {text!r:.80} cannot be written between tags")
            nodes.append(string(text))
        for leaf in parameter.others:
            if constraints := _constraints(leaf):
                raise _refusal(constraints[0], path, " beside strings")
            nodes.append(self._json({"type": leaf["type"]}))
        return nodes

    def _string(self, leaf: Mapping[str, Any], path: str) -> Node:
        names = _constraints(leaf)
        if not names:
            return self._text
        if names == ["pattern"]:
            pattern = leaf["pattern"]
            self._check_pattern(pattern, path)
            return {"type": "regex", "pattern": pattern}
        if not set(names) <= {"minLength", "maxLength"}:
            raise _refusal(names[0], path, " between tags")
        low, high = leaf.get("minLength", 0), leaf.get("maxLength")
        if high is not None:
            return {"type": "regex", "pattern": repeated(_UNTAGGED, low, high)}
        if not low:
            return self._text
        return sequence([{"type": "regex", "pattern": repeated(_UNTAGGED, low, low)}, self._text])

    def _json(self, schema: Any) -> Node:
        return {**json_node(schema), **self._excludes}

    def _untagged(self, schema: Any, path: str) -> Any:
        """`schema`, with patterns that hold no tag."""
        if isinstance(schema, dict):
            schema = {name: self._untagged(value, path) for name, value in schema.items()}
            pattern = schema.get("pattern")
            if isinstance(pattern, str):
                schema["pattern"] = pattern.replace(PLAIN_CHARACTER, _UNTAGGED_IN_JSON)
                if PLAIN_CHARACTER not in pattern:
                    self._check_pattern(pattern, path)
            return schema
        return (
            [self._untagged(item, path) for item in schema] if isinstance(schema, list) else schema
        )

    def _check_pattern(self, pattern: str, path: str) -> None:
        if self._excludes and _MAY_HOLD_TAG.search(pattern):
            raise _refusal("pattern", path, ": what matches may hold a tag")


def _constraints(leaf: Mapping[str, Any]) -> list[str]:
    return sorted(
        name for name in leaf.keys() - ANNOTATIONS - {"type"} if not name.startswith("x-")
    )


def _refusal(keyword: str, path: str, reason: str = "") -> NotEnforceable:
    return NotEnforceable(f"'{keyword}' at {path} cannot be enforced{reason}")

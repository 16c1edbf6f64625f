"""Arguments between tags: a string is written as it is, any other value as JSON.

So a value's text alone does not tell `5` from `"5"`: the parameter's schema does.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

_JSON_TYPES: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
ANY_TYPE = tuple(_JSON_TYPES.values())
_MAX_REFERENCES = 16
_OF_OBJECTS = frozenset(("properties", "required", "additionalProperties"))
ANNOTATIONS = frozenset(("title", "description", "default", "examples", "deprecated"))


@dataclass(frozen=True)
class Parameter:
    """What may stand for a parameter's value: `strings` and `others` are schemas of one type each,
    `literals` the JSON of values by how they are written."""

    strings: Sequence[Mapping[str, Any]] = ()
    others: Sequence[Mapping[str, Any]] = ()
    literals: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, schema: Any, root: Mapping[str, Any]) -> "Parameter":
        """That of a property's schema; references are to `root`."""
        strings: list[Mapping[str, Any]] = []
        others: list[Mapping[str, Any]] = []
        literals: dict[str, str] = {}
        for leaf in _leaves(schema, root, _MAX_REFERENCES):
            if "enum" in leaf or "const" in leaf:
                values = leaf.get("enum", [leaf.get("const")])
                for value in values if isinstance(values, list) else ():
                    text = json.dumps(value, ensure_ascii=False)
                    literals.setdefault(value if isinstance(value, str) else text, text)
                continue
            (strings if leaf["type"] == "string" else others).append(leaf)
        return cls(strings, others, literals)

    @cached_property
    def is_text(self) -> bool:
        """Whether every value is a string."""
        return not self.others and all(text.startswith('"') for text in self.literals.values())

    def value(self, text: str) -> str:
        """The JSON of the value that is written as `text`."""
        if text in self.literals:
            return self.literals[text]
        if not self.is_text:
            stripped = text.strip()
            kind = _type_of(stripped)
            types = {other["type"] for other in self.others}
            if "number" in types:
                types.add("integer")
            if kind is not None and (kind in types or not self.strings):
                return stripped
        return json.dumps(text, ensure_ascii=False)


ANY = Parameter([{"type": "string"}], [{"type": kind} for kind in ANY_TYPE if kind != "string"])
"""Of a parameter without a schema."""


def parameters_of(schema: Mapping[str, Any]) -> Mapping[str, Parameter]:
    """The parameters that a function's schema names."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    return {name: Parameter.of(value, schema) for name, value in properties.items()}


def _leaves(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    """The schemas of one type, and the lists of values, of which one is to hold."""
    if not isinstance(schema, dict) or not depth:
        yield from _of_types({}, ANY_TYPE)
        return
    for name in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(name), list):
            for branch in schema[name]:
                yield from _leaves(branch, root, depth - 1)
            return
    if isinstance(schema.get("$ref"), str):
        yield from _leaves(_target(schema["$ref"], root), root, depth - 1)
        return
    if "enum" in schema or "const" in schema:
        yield schema
        return
    types = schema.get("type", "object" if _OF_OBJECTS & schema.keys() else ANY_TYPE)
    yield from _of_types(schema, [types] if isinstance(types, str) else types)


def _of_types(schema: Mapping[str, Any], types: Any) -> Iterator[Mapping[str, Any]]:
    for kind in types if isinstance(types, list | tuple) else ANY_TYPE:
        yield {**schema, "type": kind}


def _target(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in filter(None, reference.removeprefix("#").split("/")):
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _type_of(text: str) -> str | None:
    """The type of a JSON text; None if it is none."""
    try:
        value = json.loads(text, parse_int=_as_zero, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, float) and value.is_integer():
        return "integer"
    return _JSON_TYPES[type(value)]


def _as_zero(digits: str) -> int:
    """An integer of any length."""
    return 0


def _refuse(name: str) -> float:
    """NaN and infinity are Python's, not JSON's."""
    raise ValueError(name)

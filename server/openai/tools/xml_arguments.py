"""Arguments between tags: a string is written as it is, any other value as JSON.

So a value's text alone does not tell `5` from `"5"`: the parameter's schema does.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from quire.pipelines.structured.json_schema import is_a, target

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
_CHOICES = ("anyOf", "oneOf", "allOf")
_OF_OBJECTS = frozenset(("properties", "required", "additionalProperties"))


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
        for leaf in _leaves(schema, root):
            if "enum" in leaf or "const" in leaf:
                for value in _values(leaf):
                    text = json.dumps(value, ensure_ascii=False)
                    literals.setdefault(value if isinstance(value, str) else text, text)
                continue
            (strings if leaf["type"] == "string" else others).append(leaf)
        return cls(strings, others, literals) if strings or others or literals else ANY

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


def parameter_of(name: str, schema: Mapping[str, Any]) -> Parameter:
    """The parameter `name` of a function whose arguments are of `schema`."""
    properties = schema.get("properties")
    more = schema.get("additionalProperties")
    known = properties if isinstance(properties, dict) else {}
    return Parameter.of(known.get(name, more), schema)


def _leaves(schema: Any, root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas of one type, and the lists of values, of which one is to hold; those behind a
    reference once, however often it comes."""
    waiting, seen = [schema], set[str]()
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict):
            yield from _of_types({}, ANY_TYPE)
            continue
        choice = next((name for name in _CHOICES if isinstance(schema.get(name), list)), None)
        reference = schema.get("$ref")
        if choice is not None:
            waiting += reversed(schema[choice])
        elif isinstance(reference, str):
            if reference not in seen:
                waiting.append(target(reference, root))
            seen.add(reference)
        elif "enum" in schema or "const" in schema:
            yield schema
        else:
            yield from _of_types(schema, _types(schema))


def _of_types(schema: Mapping[str, Any], types: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for kind in types:
        yield {**schema, "type": kind}


def _types(schema: Mapping[str, Any]) -> Sequence[str]:
    types = schema.get("type", ["object"] if _OF_OBJECTS & schema.keys() else ANY_TYPE)
    given = [types] if isinstance(types, str) else types
    return [kind for kind in given if kind in ANY_TYPE] if isinstance(given, list) else ANY_TYPE


def _values(schema: Mapping[str, Any]) -> list[Any]:
    """Those of a list of values that are of its type."""
    values = schema.get("enum", [schema.get("const")])
    if not isinstance(values, list):
        return []
    types = _types(schema) if "type" in schema else ANY_TYPE
    return [value for value in values if any(is_a(value, kind) for kind in types)]


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

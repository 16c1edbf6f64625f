"""Which JSON Schemas can be enforced. What cannot be is refused, not silently left out.

Draft 2020-12, https://json-schema.org/draft/2020-12. The rules are what xgrammar 0.2.8 was seen to
keep and to drop, one keyword at a time, by validating random walks through its grammars.
"""

import re
from collections.abc import Mapping
from typing import Any

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
    + ("$schema", "$id", "$comment", "discriminator", "$defs", "definitions")
)
_NUMBERS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
_STRINGS = frozenset(("minLength", "maxLength", "pattern", "format"))
_ARRAYS = frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"))
_OBJECTS = frozenset(
    ("properties", "required", "additionalProperties", "minProperties", "maxProperties")
)
_ALONE = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
_KNOWN = _NUMBERS | _STRINGS | _ARRAYS | _OBJECTS | {"type", *_ALONE}
_FORMATS = (
    "date",
    "time",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
) + ("uri", "uri-reference", "uri-template", "json-pointer", "relative-json-pointer")
"""Others would be dropped."""
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_IRREGULAR = re.compile(r'\(\?(?!:)|\\[1-9bBcknprtfvuxpP0]|\\\\|"')
PLAIN_CHARACTER = r"[ !#-\[\]-" + "\ud7ff\ue000-\U0010ffff]"
"""One that a string in JSON holds as it is. Written this way xgrammar lets no bytes through that are
not UTF-8; a negated class would."""
_CHARACTER = rf'({PLAIN_CHARACTER}|\\["\\/bfnrt])'
"""Any one: patterns see the text between the quotes."""

_BLOCK = 64


class NotEnforceable(ValueError):
    """A part of a schema that would not be kept; the message says where and what."""


def enforceable(schema: Any) -> dict[str, Any]:
    """`schema`, in a form that xgrammar enforces whole.

    Raises:
        NotEnforceable: a keyword, or a combination of them, would be dropped.
    """
    if not isinstance(schema, dict):
        raise NotEnforceable("a schema must be a JSON object")
    checked: dict[str, Any] = _Checker(schema).node(schema, "$")
    return checked


class _Checker:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def node(self, schema: Any, path: str) -> Any:
        if schema is True:
            return True
        if not isinstance(schema, dict):
            raise NotEnforceable(f"{path} must be a schema object")
        names = {name for name in schema if not name.startswith("x-")} - ANNOTATIONS
        for name in sorted(names - _KNOWN):
            raise _refusal(path, name)
        alone = [name for name in _ALONE if name in names]
        kept = {name: schema[name] for name in names}
        if alone:
            kept = self._alone(alone[0], kept, path)
        else:
            self._check_types(kept, path)
            kept = self._children(_with_length_as_pattern(kept, path), path)
        for name in ("$defs", "definitions"):
            if name in schema:
                kept[name] = self._named(schema[name], f"{path}.{name}")
        return kept

    def _alone(self, name: str, kept: dict[str, Any], path: str) -> dict[str, Any]:
        """A node that is another schema, a choice or a list of values, and nothing besides."""
        value = kept[name]
        beside = sorted(set(kept) - {name} - ({"type"} if name in ("enum", "const") else set()))
        if beside:
            raise _refusal(path, name, f" beside '{beside[0]}'")
        if name in ("enum", "const"):
            return self._values(name, kept, path)
        if name == "$ref":
            if not isinstance(value, str) or target(value, self._root) is None:
                raise _refusal(path, name, f": {value!r:.80} is not in the schema")
            return kept
        if not isinstance(value, list) or not value:
            raise _refusal(path, name, ": it must be a list that is not empty")
        if name == "allOf" and len(value) > 1:
            raise _refusal(path, name, " with more than one schema")
        if name == "oneOf" and not self._are_disjoint(value):
            raise _refusal(path, name, " where more than one branch may hold; use anyOf")
        branches = [self.node(item, f"{path}.{name}[{i}]") for i, item in enumerate(value)]
        return {"anyOf" if name == "oneOf" else name: branches}

    def _values(self, name: str, kept: dict[str, Any], path: str) -> dict[str, Any]:
        values = kept["enum"] if name == "enum" else [kept["const"]]
        if not isinstance(values, list):
            raise _refusal(path, name, ": it must be a list")
        if "type" in kept:
            types = _types(kept, path)
            values = [value for value in values if any(is_a(value, kind) for kind in types)]
        if not values:
            raise _refusal(path, name, ": no value is left")
        return {"enum": values}

    def _check_types(self, kept: Mapping[str, Any], path: str) -> None:
        """Bounds without the type that they bound are dropped by the compiler."""
        types = set(_types(kept, path)) if "type" in kept else set()
        for group, needed in (
            (_NUMBERS, {"integer", "number"}),
            (_STRINGS, {"string"}),
            (_ARRAYS, {"array"}),
        ):
            for name in sorted(group & set(kept)):
                if not types & needed:
                    raise _refusal(path, name, f" without type {' or '.join(sorted(needed))}")
        if kept.get("format", "date") not in _FORMATS:
            raise _refusal(path, "format", f": {kept['format']!r:.80}")
        for name in sorted(_NUMBERS & set(kept)):
            _check_number(name, kept[name], "integer" in types and "number" not in types, path)
        if kept.get("uniqueItems"):
            raise _refusal(path, "uniqueItems")
        required, properties = kept.get("required", []), kept.get("properties", {})
        if not isinstance(properties, dict):
            raise NotEnforceable(f"{path}.properties must be an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise _refusal(path, "required", ": it must be a list of names")
        missing = set(required) - set(properties)
        for name in sorted(missing):
            raise _refusal(path, "required", f": 'properties' lacks {name!r:.80}")

    def _children(self, kept: dict[str, Any], path: str) -> dict[str, Any]:
        kept.pop("uniqueItems", None)
        if "properties" in kept:
            kept["properties"] = self._named(kept["properties"], f"{path}.properties")
        for name in ("items", "additionalProperties"):
            if kept.get(name, False) is not False:
                kept[name] = self.node(kept[name], f"{path}.{name}")
        if "prefixItems" in kept:
            items = kept["prefixItems"]
            if not isinstance(items, list):
                raise _refusal(path, "prefixItems", ": it must be a list")
            kept["prefixItems"] = [
                self.node(item, f"{path}.prefixItems[{i}]") for i, item in enumerate(items)
            ]
        return kept

    def _named(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise NotEnforceable(f"{path} must be an object")
        return {name: self.node(item, f"{path}.{name}") for name, item in value.items()}

    def _are_disjoint(self, branches: list[Any]) -> bool:
        """Whether at most one branch can hold: other types, or other constants of one property."""
        resolved = [self._resolved(branch) for branch in branches]
        if not all(isinstance(branch, dict) for branch in resolved):
            return False
        kinds = [branch.get("type") for branch in resolved]
        if all(isinstance(kind, str) for kind in kinds):
            numbers = {"integer", "number"}
            if len(set(kinds)) == len(kinds) and not numbers <= set(kinds):
                return True
        for name in set.intersection(*map(_required, resolved)):
            tags = [self._resolved(_properties(branch).get(name)) for branch in resolved]
            values = [repr(v) for tag in tags for v in _tag_values(tag)]
            if all(_tag_values(tag) for tag in tags) and len(set(values)) == len(values):
                return True
        return False

    def _resolved(self, schema: Any) -> Any:
        for _ in range(16):
            if not (isinstance(schema, dict) and isinstance(schema.get("$ref"), str)):
                return schema
            schema = target(schema["$ref"], self._root)
        return None


def target(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference in the schema `root` points at; None if nothing."""
    found: Any = root
    if not reference.startswith("#"):
        return None
    for part in filter(None, reference[1:].split("/")):
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _required(schema: Mapping[str, Any]) -> set[str]:
    names = schema.get("required")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _tag_values(schema: Any) -> list[Any]:
    if not isinstance(schema, dict):
        return []
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else []


def _with_length_as_pattern(kept: dict[str, Any], path: str) -> dict[str, Any]:
    """Bounds of a string's length as a pattern: as bounds they let raw control characters through.

    A string of bounded length holds no escapes: counted among them, xgrammar takes 0.4 seconds a
    token for 300 characters.
    """
    lengths = [name for name in ("minLength", "maxLength") if name in kept]
    if "pattern" in kept and "format" in kept:
        raise _refusal(path, "pattern", " beside 'format'")
    for other in ("pattern", "format"):
        if lengths and other in kept:
            raise _refusal(path, lengths[0], f" beside '{other}'")
    pattern = kept.get("pattern", "")
    if not isinstance(pattern, str) or _IRREGULAR.search(pattern):
        raise _refusal(path, "pattern", ": look-around, back references, quotes, escapes by code")
    if not lengths:
        return kept
    low, high = kept.pop("minLength", 0), kept.pop("maxLength", "")
    for name, value in (("minLength", low), ("maxLength", high)):
        if value != "" and (type(value) is not int or value < 0):
            raise _refusal(path, name, ": it must be a whole number")
    if high == "" and not low:
        return kept
    if high == "":
        return {**kept, "pattern": f"^{_exactly(_CHARACTER, low)}{_CHARACTER}*$"}
    return {**kept, "pattern": f"^{repeated(PLAIN_CHARACTER, low, high)}$"}


def repeated(character: str, low: int, high: int) -> str:
    """The pattern of `low` to `high` of `character`. What is long is in blocks: they share what
    xgrammar keeps of them, where several bounds of hundreds would take more memory than a grammar
    may, and of `{491,500}` its masks were seen to allow what it then refuses."""
    if high <= 2 * _BLOCK:
        return f"{character}{{{low},{high}}}"
    more = high - low
    if more <= 2 * _BLOCK:
        return f"{_exactly(character, low)}{character}{{0,{more}}}"
    blocks, rest = divmod(more, _BLOCK)
    block = f"({character}{{{_BLOCK}}}){{0,{blocks - 1}}}"
    return f"{_exactly(character, low)}{block}{character}{{0,{_BLOCK + rest}}}"


def _exactly(character: str, count: int) -> str:
    blocks, rest = divmod(count, _BLOCK)
    whole = f"({character}{{{_BLOCK}}}){{{blocks}}}" if blocks else ""
    return whole + (f"{character}{{{rest}}}" if rest else "")


def _check_number(name: str, value: Any, is_integer: bool, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(path, name, ": it must be a number")
    if name == "multipleOf" and not is_integer:
        raise _refusal(path, name, " on anything but an integer")
    if is_integer and value != int(value):
        raise _refusal(path, name, ": a bound of an integer must be whole")
    if "e" in repr(value):
        raise _refusal(path, name, f": {value!r} is too small or too large")


def _types(kept: Mapping[str, Any], path: str) -> list[str]:
    value = kept["type"]
    types = [value] if isinstance(value, str) else value
    names = list(_JSON_TYPES)
    if not isinstance(types, list) or not types or not all(t in names for t in types):
        raise _refusal(path, "type", f": {value!r:.80} is no type of JSON")
    return types


def is_a(value: Any, kind: str) -> bool:
    """Whether a JSON value is of the type `kind`."""
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _JSON_TYPES[kind])


def _refusal(path: str, keyword: str, reason: str = "") -> NotEnforceable:
    return NotEnforceable(f"'{keyword}' at {path} cannot be enforced{reason}")

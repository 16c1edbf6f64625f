"""`RequestModel`: how every object in a request is checked.

Types are strict ("5" and true are not 5, but 5.0 is: JSON has one kind of number), null means the
default, a field that Quire does not serve is refused by name, and a field that nobody knows is kept
aside to be reported.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from quire.config.limits import LIMITS
from quire.server.openai.known_fields import Harmless

_EXACT = 2.0**53
"""The greatest float up to which each whole number is one."""
_JSON_NAMES: Mapping[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    list: "a list",
    dict: "an object",
}


class RequestModel(BaseModel):
    """Base of the request objects.

    `unsupported` names fields of OpenAI or a peer that Quire does not serve, with the values that
    ask for nothing; `without_effect` fields that only tell the server something, with their type.
    """

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        frozen=True,
        protected_namespaces=(),
        json_schema_extra=lambda schema: make_nullable(schema),
    )

    may_constrain: ClassVar[bool] = False
    """Whether a client could mean an unknown field to constrain the reply."""
    unsupported: ClassVar[Mapping[str, Harmless]] = {}
    without_effect: ClassVar[Mapping[str, type]] = {}

    @model_validator(mode="before")
    @classmethod
    def _take_known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept: dict[str, Any] = {}
        for name, value in data.items():
            if value is None:
                continue
            if name in cls.unsupported:
                cls.unsupported[name].check(name, value)
            elif name in cls.without_effect:
                kind = cls.without_effect[name]
                if not isinstance(value, kind):
                    raise refusal(name, f"must be {_JSON_NAMES[kind]}")
            else:
                kept[name] = _with_integers(value)
        return kept

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Tells of the fields that are not served, too: `x-refused`, `x-without-effect`."""
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        for name in cls.unsupported:
            # A field of the base class that this one refuses.
            own.get("properties", {}).pop(name, None)
        if cls.unsupported:
            own["x-refused"] = {
                name: {"accepted": list(known.values), "hint": known.hint}
                for name, known in cls.unsupported.items()
            }
        if cls.without_effect:
            own["x-without-effect"] = {
                name: _JSON_NAMES[kind] for name, kind in cls.without_effect.items()
            }
        return schema

    @cached_property
    def unknown_names(self) -> list[str]:
        """The first of `unknown_fields`: one more than may be there."""
        return list(islice(self.unknown_fields(), LIMITS.unknown_fields + 1))

    def unknown_fields(self, path: str = "") -> Iterator[str]:
        """Dotted paths of the fields that nothing here reads."""
        for name in self.model_extra or {}:
            yield f"{path}{name}"
        for name in self.model_fields_set:
            value = getattr(self, name)
            items = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, item in items:
                if isinstance(item, RequestModel):
                    place = name if index is None else f"{name}.{index}"
                    yield from item.unknown_fields(f"{path}{place}.")


def refusal(field: str, message: str) -> PydanticCustomError:
    """The error to raise in a validator when `field` is wrong; the message follows its name."""
    return PydanticCustomError("refused", "{message}", {"message": message, "field": field})


def _with_integers(value: Any) -> Any:
    """`value`, or a list's items, with the whole numbers as int; a float field takes those too."""
    if isinstance(value, list):
        kinds = set(map(type, value))
        return [_with_integers(item) for item in value] if kinds & {float, list} else value
    if type(value) is float and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value


def make_nullable(schema: dict[str, Any]) -> None:
    """Let a JSON Schema's fields be null where they have a default."""
    required, null = schema.get("required", ()), {"type": "null"}
    for name, field in schema.get("properties", {}).items():
        if name not in required and null not in field.get("anyOf", ()):
            outer = {key: field.pop(key) for key in ("default", "description") if key in field}
            schema["properties"][name] = {"anyOf": [dict(field), null], **outer}

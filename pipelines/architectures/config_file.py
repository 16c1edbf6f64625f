"""Typed access to the JSON files of a model folder."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeGuard, cast

from quire.config.errors import ModelError

MAX_JSON_BYTES = 16 * 1024**2


class ConfigFile:
    """One JSON object of a model folder.

    A key whose value is null counts as missing. Reading runs no code: keys such as `auto_map`
    are data that nobody looks at.

    Raises (all methods):
        ModelError: a key is missing or its value has the wrong type or range.
    """

    def __init__(self, name: str, values: Mapping[str, object]) -> None:
        self.name = name
        self._values = values

    @classmethod
    def read(cls, path: Path) -> "ConfigFile":
        """Read `path`, a JSON object of at most `MAX_JSON_BYTES`."""
        if not path.is_file():
            raise ModelError(f"{path}: file not found")
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError(f"{path}: expected at most {MAX_JSON_BYTES} bytes, found {size}")
        try:
            values = json.loads(path.read_bytes())
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path}: expected JSON, found {error}") from None
        if not isinstance(values, dict):
            raise ModelError(f"{path}: expected a JSON object, found {_kind(values)}")
        return cls(str(path), values)

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def is_null(self, key: str) -> bool:
        """Whether the file says null, rather than nothing, for `key`."""
        return key in self._values and self._values[key] is None

    def is_zero(self, key: str) -> bool:
        """Whether the file has the number 0 for `key`."""
        value = self._values.get(key)
        return _is_number(value) and value == 0

    def is_empty(self, key: str) -> bool:
        """Whether the value is an empty list or object."""
        return self._values.get(key) in ([], {})

    def is_object(self, key: str) -> bool:
        """Whether the value is an object."""
        return isinstance(self._values.get(key), dict)

    def wrong(self, key: str, expected: str) -> ModelError:
        """The error that says `key` is not what was expected; for the caller to raise."""
        found = "nothing"
        if self.has(key):
            found = json.dumps(self._values[key])
            found = found if len(found) <= 80 else f"{found[:77]}..."
        return ModelError(f"{self.name}: {key}: expected {expected}, found {found}")

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.wrong(key, f"an integer of at least {minimum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number greater than 0."""
        value = self._get(key, default)
        if not _is_number(value) or value <= 0:
            raise self.wrong(key, "a number greater than 0")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def boolean(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def truth(self, key: str, default: bool) -> bool:
        """True or false, or a number in their place, of which 0 is false."""
        value = self._get(key, default)
        if not isinstance(value, bool | int):
            raise self.wrong(key, "true or false")
        return bool(value)

    def string(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def nested_strings(self, key: str) -> tuple[str, ...]:
        """All strings of a list of lists of strings."""
        lists = self._get(key, None)
        found: list[str] = []
        for items in lists if isinstance(lists, list) else [None]:
            if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
                raise self.wrong(key, "a list of lists of strings")
            found += items
        return tuple(found)

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self._get(key, None)
        if not isinstance(value, list) or not all(_is_number(item) for item in value):
            raise self.wrong(key, "a list of numbers")
        return tuple(float(item) for item in value)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self._get(key, None)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.wrong(key, "a list of integers")
        return tuple(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id, a list of them, or missing: no ids."""
        value = self._get(key, [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise self.wrong(key, "a token id or a list of token ids")
        return tuple(ids)

    def section(self, key: str) -> "ConfigFile":
        """The object under `key`, its own errors named `key.inner`."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a JSON object")
        return ConfigFile(f"{self.name}: {key}", cast(dict[str, object], value))

    def with_defaults(self, defaults: Mapping[str, object]) -> "ConfigFile":
        """The same, with `defaults` for keys that the file does not have; null stays null.

        transformers leaves out of nested objects what the class has as default.
        """
        return ConfigFile(self.name, {**defaults, **self._values})

    def _get(self, key: str, default: object) -> object:
        value = self._values.get(key)
        return default if value is None else value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: object) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")

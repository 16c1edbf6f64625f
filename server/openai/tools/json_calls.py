"""Calls written as JSON objects: `{"name": "f", "arguments": {...}}`, alone or in a list."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

from quire.server.openai.tools.call_sections import CallSections
from quire.server.openai.tools.character_parser import (
    END,
    SPACES,
    Deciding,
    decoded_string,
)

_ARGUMENTS = ("arguments", "parameters")
_BESIDE = ("type", "id")
Outcome = Literal["call", "no call", "broken"]


@dataclass
class _Object:
    """What is known of an object: `arguments` were read before the name, or are not an object."""

    name: str = ""
    arguments: str = ""
    is_inner: bool = False
    is_called: bool = False


class JsonCalls(CallSections):
    """Reads `format_` for the functions of `names`.

    After an opening, or at the start where the format needs none, come objects with separators
    between them, in brackets or not, then the closing. An object that is no call of a known
    function is content, and so is what surrounds it. The arguments are the model's own characters.
    """

    def _section(self, opening: str) -> Deciding:
        """What follows an opening; whether it was closed, or is content."""
        in_list = opening.endswith("[")
        has_called = False
        while True:
            character = yield from self._next()
            if character == "{":
                if has_called:
                    self._begin_raw(character)
                outcome = yield from self._object(_Object())
                if outcome != "call":
                    self._raw_is_content()
                    return outcome == "no call" and not has_called
                has_called = True
            elif character == "[" and not in_list:
                in_list = True
            elif character == "]" and in_list:
                in_list = False
            elif character == END or character not in SPACES + ",;":
                self._unread(character)
                break
        is_closed = (yield from self._one_of(self._format.closings)) != END
        if not has_called:
            self._raw_is_content()
            return True
        return is_closed

    def _object(self, found: _Object) -> Generator[None, str, Outcome]:
        """An object after its brace."""
        while True:
            yield from self._spaces(",")
            character = yield from self._next()
            if character == "}":
                if found.name and not found.is_called:
                    self._call(found)
                return "call" if found.is_called else "no call"
            self._unread(character)
            if character == '"':
                is_read = yield from self._member(found)
                if is_read:
                    continue
            if not found.is_called:
                if not found.name or not (yield from self._is_at_end()):
                    return "no call"
                self._open(found)
            return "broken"

    def _member(self, found: _Object) -> Deciding:
        """A key and its value; False where they break off, or no call has them."""
        key = decoded_string((yield from self._text_value()))
        yield from self._spaces()
        if (yield from self._one_of((":",))) == END:
            return False
        yield from self._spaces()
        first = yield from self._next()
        self._unread(first)
        if found.is_called:
            return (yield from self._text_value()) != END
        if key == "function" and first == "{" and not found.is_inner:
            found.is_inner = True
            yield from self._next()
            return (yield from self._object(found)) == "call"
        if key in _ARGUMENTS and found.name and first == "{":
            return (yield from self._arguments(found))
        if key not in (*_ARGUMENTS, *_BESIDE, "name", "function"):
            return False
        value = yield from self._text_value()
        if value != END and key in ("name", "function"):
            found.name = decoded_string(value) or ""
            return found.name in self._names
        if key in _ARGUMENTS:
            found.arguments = value
        return value != END

    def _arguments(self, found: _Object) -> Deciding:
        self._open(found)
        is_whole = yield from self._value(self._argument)
        if is_whole or not (yield from self._is_at_end()):
            self._emit("end")
        return is_whole

    def _open(self, found: _Object) -> None:
        self._drop_raw()
        found.is_called = True
        self._emit("call", found.name)

    def _call(self, found: _Object) -> None:
        """Emit a call whose arguments are known, or empty; they may be JSON in a string."""
        self._open(found)
        text = found.arguments
        inner = decoded_string(text)
        if inner is not None:
            text = inner
        self._emit("arguments", "{}" if text in ("", "null") else text)
        self._emit("end")

"""Calls with a tag around each argument: Qwen3-Coder's form, GLM's, MiniMax's."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire.server.openai.tools.call_sections import CallSections
from quire.server.openai.tools.character_parser import END, Deciding, Reading
from quire.server.openai.tools.events import Kind
from quire.server.openai.tools.formats import ToolFormat
from quire.server.openai.tools.xml_arguments import Parameter, parameter_of

Sink = Callable[[str], None]

_OF_NAMES = frozenset("-._0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class XmlCalls(CallSections):
    """Reads `format_` for the functions of `names`, whose schemas of arguments are `schemas`.

    The client gets JSON: of a string as it comes, of any other value when its tag is closed. A value
    that is no JSON where one should be is a string.
    """

    def __init__(
        self,
        format_: ToolFormat,
        names: frozenset[str],
        hidden: frozenset[str] = frozenset(),
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._schemas = schemas or {}
        start, _, rest = format_.call.partition("NAME")
        after_name, _, after = rest.partition("ARGUMENTS")
        before = next((o for o in format_.openings if start.startswith(o)), "")
        self._before_name, self._after_name = start.removeprefix(before).strip(), after_name.strip()
        self._call_end = after.split()[0]
        key_start, _, rest = format_.argument.partition("KEY")
        middle, _, value_end = rest.partition("VALUE")
        self._key_start, self._before_value = key_start, tuple(middle.split())
        self._value_ends = tuple(dict.fromkeys((value_end.rstrip(), value_end.strip())))
        self._has_lines = middle.endswith("\n")
        starts = "".join(sorted({re.escape(end[0]) for end in self._value_ends}))
        plain = f'["\\\\\x00-\x1f{starts}]'
        self._in_text: tuple[re.Pattern[str], Kind] = (re.compile(plain), "arguments")
        super().__init__(format_, names, hidden)

    def _section(self, opening: str) -> Deciding:
        has_called = False
        while True:
            before = self._before_name
            is_read = not before or (opening == before and not has_called)
            if not is_read and (yield from self._one_of((before,))) == END:
                break
            name = yield from self._name()
            if name not in self._names:
                self._raw_is_content()
                return not has_called
            self._drop_raw()
            self._emit("call", name)
            has_called = True
            end = yield from self._arguments(self._schemas.get(name, {}))
            if end == END or end in self._format.closings:
                return end != END
            self._begin_raw()
            yield from self._spaces()
        is_closed = has_called and (yield from self._one_of(self._format.closings)) != END
        if is_closed:
            self._drop_raw()
        else:
            self._raw_is_content()
        return is_closed or not has_called

    def _name(self) -> Reading:
        """A function's name, and what follows it in its tag; END if it breaks off."""
        read = ""
        while True:
            character = yield from self._next()
            if character == END or character not in _OF_NAMES:
                self._unread(character)
                break
            read += character
        if (yield from self._is_at_end()):
            return END
        if self._after_name and (yield from self._one_of((self._after_name,))) == END:
            return END
        return read

    def _arguments(self, schema: Mapping[str, Any]) -> Reading:
        """The arguments of a call, and what ends it; END if nothing does."""
        before = "{"
        marks = dict.fromkeys((self._key_start, self._call_end, *self._format.closings))
        while True:
            marker = yield from self._text(tuple(marks), _drop)
            if marker != self._key_start:
                break
            pieces: list[str] = []
            if (yield from self._key(pieces.append)) == END:
                return END
            key = "".join(pieces)
            self._emit("arguments", f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            if not (yield from self._value_of(parameter_of(key, schema))):
                return END
            before = ", "
        if marker != END:
            self._emit("arguments", "{}" if before == "{" else "}")
            self._emit("end")
        return marker

    def _key(self, sink: Sink) -> Reading:
        """A parameter's name, and what stands between it and its value."""
        first, *others = self._before_value
        if (yield from self._text((first,), sink)) == END:
            return END
        for mark in others:
            yield from self._spaces()
            if (yield from self._one_of((mark,))) == END:
                return END
        if self._has_lines:
            yield from self._one_of(("\n",))
        return first

    def _value_of(self, parameter: Parameter) -> Deciding:
        """A value, up to the end of its tag; False where it breaks off."""
        if parameter.is_text:
            self._emit("arguments", '"')
            end = yield from self._text(self._value_ends, self._escaped)
            if end != END:
                self._emit("arguments", '"')
            return end != END
        pieces: list[str] = []
        end = yield from self._text(self._value_ends, pieces.append)
        if end != END:
            self._emit("arguments", parameter.value("".join(pieces)))
        return end != END

    def _text(self, ends: Sequence[str], sink: Sink) -> Reading:
        """Pass on what comes before one of `ends` and return it; END when none comes."""
        held = ""
        while True:
            is_fast = sink == self._escaped and not held and not self._back
            self._fast = self._in_text if is_fast else None
            character = yield from self._next()
            self._fast = None
            if character == END:
                self._unread(character)
                return END
            held += character
            while held and not any(end.startswith(held) for end in ends):
                sink(held[0])
                held = held[1:]
            if held in ends:
                return held

    def _escaped(self, text: str) -> None:
        """The sink of a string's characters."""
        self._emit("arguments", json.dumps(text, ensure_ascii=False)[1:-1])


def _drop(text: str) -> None:
    """The sink of what stands between arguments."""

"""Calls written as a list of Python calls: `[f(a=1), g(b="x")]`, as Llama 4 does.

Arguments become a JSON object while they are read; nothing is evaluated.
"""

import json
import re

from quire.server.openai.tools.call_sections import CallSections
from quire.server.openai.tools.character_parser import (
    END,
    SPACES,
    Deciding,
    Reading,
)
from quire.server.openai.tools.events import Kind

MAX_DEPTH = 64
MAX_WORD_CHARACTERS = 4096
_NAME = frozenset("-._0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_WORD_ENDS = frozenset(",:)]}='\"[({" + SPACES)
_CLOSERS = {"[": "]", "(": ")", "{": "}"}
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v"}
_CODES = {"x": 2, "u": 4, "U": 8}
_IN_STRING: tuple[re.Pattern[str], Kind] = (re.compile(r"""["'\\\x00-\x1f]"""), "arguments")
"""What follows is escaped, or ends the string; the rest is the same in JSON."""
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")


class PythonicCalls(CallSections):
    """Reads `format_` for the functions of `names`; a call of another function is content."""

    def _section(self, opening: str) -> Deciding:
        """A list of calls; whether it was closed, or is content."""
        has_called = False
        if (yield from self._one_of(("[",))) != END:
            while True:
                yield from self._spaces(",")
                name = yield from self._identifier()
                if not name:
                    break
                if name not in self._names or not (yield from self._call(name)):
                    self._raw_is_content()
                    return not has_called
                has_called = True
                self._begin_raw()
        if not has_called:
            self._raw_is_content()
            return True
        self._drop_raw()
        yield from self._one_of(("]",))
        yield from self._spaces()
        return (yield from self._one_of(self._format.closings)) != END

    def _call(self, name: str) -> Deciding:
        """The arguments in parentheses. Until one is seen to be named, this may be no call."""
        if (yield from self._one_of(("(",))) == END:
            return False
        is_first = True
        while True:
            yield from self._spaces("" if is_first else ",")
            key = yield from self._identifier()
            is_named = False
            if key:
                yield from self._spaces()
                is_named = (yield from self._one_of(("=",))) != END
            is_over = not key and (yield from self._one_of((")",))) != END
            if is_first:
                if not is_named and not is_over:
                    return False
                self._drop_raw()
                self._emit("call", name)
                self._emit("arguments", "{")
            if is_over:
                self._emit("arguments", "}")
                self._emit("end")
                return True
            if is_named:
                self._emit("arguments", f"{'' if is_first else ', '}{json.dumps(key)}: ")
                yield from self._spaces()
                is_named = yield from self._literal(0)
            if not is_named:
                if not (yield from self._is_at_end()):
                    self._emit("end")
                return False
            is_first = False

    def _identifier(self) -> Reading:
        read: list[str] = []
        while len(read) < MAX_WORD_CHARACTERS:
            character = yield from self._next()
            if character == END or character not in _NAME:
                self._unread(character)
                break
            read.append(character)
        return "".join(read)

    def _literal(self, depth: int) -> Deciding:
        """A value, emitted as JSON; False where it breaks off."""
        first = yield from self._next()
        if first in ("'", '"'):
            return (yield from self._string(first))
        if first not in _CLOSERS:
            self._unread(first)
            return (yield from self._word(is_key=False))
        if depth >= MAX_DEPTH:
            return False
        closer, is_mapping = _CLOSERS[first], first == "{"
        self._emit("arguments", "{" if is_mapping else "[")
        is_first = True
        while True:
            yield from self._spaces("" if is_first else ",")
            if (yield from self._one_of((closer,))) != END:
                self._emit("arguments", "}" if is_mapping else "]")
                return True
            if (yield from self._is_at_end()):
                return False
            if not is_first:
                self._emit("arguments", ", ")
            is_first = False
            if is_mapping and not (yield from self._key()):
                return False
            if not (yield from self._literal(depth + 1)):
                return False
            yield from self._spaces()

    def _key(self) -> Deciding:
        first = yield from self._next()
        if first in ("'", '"'):
            is_read = yield from self._string(first)
        else:
            self._unread(first)
            is_read = yield from self._word(is_key=True)
        yield from self._spaces()
        if not is_read or (yield from self._one_of((":",))) == END:
            return False
        self._emit("arguments", ": ")
        yield from self._spaces()
        return True

    def _word(self, *, is_key: bool) -> Deciding:
        """A constant, a number, or a word that should have been quoted."""
        read: list[str] = []
        while len(read) < MAX_WORD_CHARACTERS:
            character = yield from self._next()
            if character == END or character in _WORD_ENDS:
                self._unread(character)
                if character == END:
                    return False
                break
            read.append(character)
        word = "".join(read)
        if not word:
            return False
        value = _CONSTANTS.get(word, word)
        is_json = value in ("true", "false", "null") or _JSON_NUMBER.fullmatch(value) is not None
        text = value if is_json else json.dumps(word, ensure_ascii=False)
        self._emit("arguments", json.dumps(value) if is_key and is_json else text)
        return True

    def _string(self, quote: str) -> Deciding:
        """A string after its first quote; three quotes make a long one."""
        end = quote
        if (yield from self._one_of((quote,))) != END:
            if (yield from self._one_of((quote,))) == END:
                self._emit("arguments", '""')
                return True
            end = quote * 3
        self._emit("arguments", '"')
        while True:
            # One quote is one character to read, so nothing else can be half read.
            self._fast = _IN_STRING if len(end) == 1 and not self._back else None
            is_over = (yield from self._one_of((end,))) != END
            self._fast = None
            if is_over:
                break
            character = yield from self._next()
            if character == END:
                self._unread(character)
                return False
            if character == "\\":
                character = yield from self._escape()
            self._emit("arguments", _json_text(character))
        self._emit("arguments", '"')
        return True

    def _escape(self) -> Reading:
        """What a backslash and the following characters stand for; nothing if they are cut off."""
        kind = yield from self._next()
        if kind in _CODES:
            digits = ""
            while len(digits) < _CODES[kind]:
                digit = yield from self._next()
                if digit == END or digit not in "0123456789abcdefABCDEF":
                    self._unread(digit)
                    return f"\\{kind}{digits}" if digit else ""
                digits += digit
            code = int(digits, 16)
            return chr(code) if code < 0x110000 else f"\\{kind}{digits}"
        if kind == END:
            self._unread(kind)
            return ""
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        if kind == "\n":
            return ""
        return kind if kind in "\\/'\"" else f"\\{kind}"


def _json_text(text: str) -> str:
    """The inside of a JSON string. Halves of a surrogate pair stay escaped, as text cannot hold
    them."""
    is_half = any("\ud800" <= character <= "\udfff" for character in text)
    return json.dumps(text, ensure_ascii=is_half)[1:-1]

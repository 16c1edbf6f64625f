"""`CharacterParser`: the base of the parsers, which read a reply one character at a time.

Each is written as a generator that takes a character per step, so nothing depends on where the
text was cut, and all of it is linear in the text: what was read is put back at most for the length
of a marker.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence

from quire.server.openai.tools.events import Event, Kind, joined

Reading = Generator[None, str, str]
"""Takes characters, returns what it read."""
Deciding = Generator[None, str, bool]
Steps = Generator[None, str, None]

END = ""
"""The character after the last one."""
SPACES = " \t\r\n"
_BARE = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CLOSERS = {"{": "}", "[": "]"}
_IN_STRING: tuple[re.Pattern[str], Kind] = (re.compile(r'["\\]'), "arguments")


class CharacterParser(ABC):
    """Turns text into events; `feed` and then `finish`, once.

    `hidden` are markers that are control tokens, with their CONTROL_MARK: where one turns out not to
    mark anything, it is no content either.
    """

    def __init__(self, hidden: frozenset[str] = frozenset()) -> None:
        self._hidden = hidden
        self._events: list[Event] = []
        self._back: list[str] = []
        self._raw: list[str] | None = None
        self._fast: tuple[re.Pattern[str], Kind] | None = None
        self._num_fed = self._num_held = 0
        self.reasoning_spans: list[tuple[int, int | None]] = []
        """Where in the text each piece of reasoning begins and ends; None while it goes on."""
        self._steps = self._run()
        next(self._steps)

    def feed(self, text: str) -> list[Event]:
        """What `text` adds."""
        start, length = 0, len(text)
        while start < length:
            if self._fast is not None:
                # Nothing is half read, and up to the next of these characters nothing will be.
                pattern, kind = self._fast
                found = pattern.search(text, start)
                end = length if found is None else found.start()
                if end > start:
                    self._events.append(Event(kind, text[start:end]))
                self._num_fed += end - start
                start = end
                if start == length:
                    break
            self._num_fed += 1
            self._steps.send(text[start])
            start += 1
        return self._taken()

    def finish(self) -> list[Event]:
        """What is left when no more text comes."""
        try:
            self._steps.send(END)
        except StopIteration:
            return self._taken()
        raise AssertionError("a parser went on after the end")

    @property
    def settled(self) -> int:
        """Characters of the text that are no part of a mark which may still become whole."""
        return self._num_fed - self._num_held

    def _begin_reasoning(self) -> None:
        """Reasoning begins with the next character."""
        self.reasoning_spans.append((self._position, None))

    def _end_reasoning(self, mark: str) -> None:
        """It ended before `mark`, which was read last; END: with the text."""
        start, _ = self.reasoning_spans.pop()
        self.reasoning_spans.append((start, None if mark == END else self._position - len(mark)))

    @property
    def _position(self) -> int:
        """Characters of the text before the next one to be read."""
        return self._num_fed - sum(map(len, self._back))

    @abstractmethod
    def _run(self) -> Steps:
        """Reads characters by `yield` until END."""

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return joined(events)

    def _emit(self, kind: Kind, text: str = "") -> None:
        self._events.append(Event(kind, text))

    def _argument(self, text: str) -> None:
        """The sink of a value that is an argument; what was read before it is no content."""
        self._events.append(Event("arguments", text))

    def _next(self) -> Reading:
        character = self._back.pop() if self._back else (yield)
        if self._raw is not None:
            self._raw.append(character)
        return character

    def _unread(self, text: str) -> None:
        """Give back `text`, the last characters read; END is given back as one."""
        self._back.extend(reversed(text) if text else (END,))
        if self._raw is not None:
            del self._raw[-max(1, len(text)) :]

    def _begin_raw(self, marker: str = "") -> None:
        """Remember what is read from `marker` on, in case it is content after all."""
        self._raw = [marker]

    def _drop_raw(self) -> None:
        self._raw = None

    def _raw_is_content(self) -> None:
        if self._raw is not None:
            text = "".join(self._raw)
            for marker in self._hidden:
                text = text.replace(marker, "")
            self._emit("content", text)
            self._raw = None

    def _until(self, markers: Sequence[str], kind: Kind) -> Reading:
        """Emit text up to the first of `markers` and return it; END when none comes."""
        known = (*markers, *self._hidden)
        starts = "".join(re.escape(c) for c in sorted({marker[0] for marker in known}))
        fast = (re.compile(f"[{starts}]") if known else re.compile(r"(?!)"), kind)
        held = ""
        while True:
            self._fast = None if held or self._back else fast
            self._num_held = len(held)
            character = yield from self._next()
            self._fast = None
            self._num_held = 0
            if character == END:
                self._emit(kind, held)
                return END
            held += character
            while held and not any(marker.startswith(held) for marker in known):
                self._emit(kind, held[0])
                held = held[1:]
            if held in markers:
                return held
            if held in self._hidden:
                held = ""

    def _spaces(self, also: str = "") -> Steps:
        """Skip white space and the characters of `also`."""
        while True:
            character = yield from self._next()
            if character == END or character not in SPACES + also:
                self._unread(character)
                return

    def _one_of(self, options: Sequence[str]) -> Reading:
        """Read one of `options` and return it, or nothing and END."""
        read = ""
        while True:
            character = yield from self._next()
            if character == END or not any(o.startswith(read + character) for o in options):
                self._unread(character)
                if read:
                    self._unread(read)
                return END
            read += character
            if read in options:
                return read

    def _value(self, sink: Callable[[str], None]) -> Deciding:
        """Pass on a JSON value; False where it breaks off. What follows it stays unread."""
        first = yield from self._next()
        if first == '"':
            sink(first)
            return (yield from self._string_rest(sink))
        if first not in _CLOSERS:
            self._unread(first)
            return (yield from self._bare(sink))
        sink(first)
        closers = [_CLOSERS[first]]
        while closers:
            character = yield from self._next()
            if character == '"':
                sink(character)
                if not (yield from self._string_rest(sink)):
                    return False
                continue
            if character in _CLOSERS:
                closers.append(_CLOSERS[character])
            elif character == closers[-1]:
                closers.pop()
            elif character == END or (character not in _BARE and character not in " \t\r\n,:"):
                self._unread(character)
                return False
            sink(character)
        return True

    def _bare(self, sink: Callable[[str], None]) -> Deciding:
        """A number, true, false or null."""
        is_any = False
        while True:
            character = yield from self._next()
            if character == END or character not in _BARE:
                self._unread(character)
                return is_any
            is_any = True
            sink(character)

    def _string_rest(self, sink: Callable[[str], None]) -> Deciding:
        """A JSON string after its opening quote."""
        is_escaped = False
        is_fast = sink == self._argument
        while True:
            self._fast = _IN_STRING if is_fast and not is_escaped and not self._back else None
            character = yield from self._next()
            self._fast = None
            if character == END:
                self._unread(character)
                return False
            sink(character)
            if is_escaped:
                is_escaped = False
            elif character == "\\":
                is_escaped = True
            elif character == '"':
                return True

    def _is_at_end(self) -> Deciding:
        """Whether no character is left."""
        character = yield from self._next()
        self._unread(character)
        return character == END

    def _text_value(self) -> Reading:
        """A JSON value's text; END where it breaks off."""
        pieces: list[str] = []
        is_whole = yield from self._value(pieces.append)
        return "".join(pieces) if is_whole else END


def decoded_string(text: str) -> str | None:
    """The string that a JSON text stands for; None if it is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None

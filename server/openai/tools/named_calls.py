"""Calls written as a name between markers and a JSON object: Mistral's newer form, DeepSeek's."""

from quire.server.openai.tools.character_parser import (
    END,
    CharacterParser,
    Deciding,
    Reading,
    Steps,
)
from quire.server.openai.tools.formats import ToolFormat

MAX_NAME_CHARACTERS = 256


class NamedCalls(CharacterParser):
    """Reads `format_` for the functions of `names`.

    What begins like a call but has no known name, or no object after it, is content.
    """

    def __init__(
        self, format_: ToolFormat, names: frozenset[str], hidden: frozenset[str] = frozenset()
    ) -> None:
        self._format = format_
        self._names = names
        before, _, rest = format_.call.partition("NAME")
        between, _, self._after = rest.partition("ARGUMENTS")
        self._before_index, _, self._before_arguments = between.rpartition("INDEX")
        # Of what precedes the name, the parser has read the opening when it gets there.
        self._opening = max((o for o in format_.openings if before.startswith(o)), key=len)
        self._before_name = before.removeprefix(self._opening)
        super().__init__(hidden)

    def _run(self) -> Steps:
        openings, closings = self._format.openings, self._format.closings
        in_section = False
        while True:
            markers = (*openings, *closings) if in_section else openings
            marker = yield from self._until(markers, "content")
            if marker == END:
                return
            if marker in closings:
                in_section = False
                continue
            self._begin_raw(marker)
            if marker != self._opening:
                # The opening of a section, in which calls follow.
                yield from self._spaces()
                if (yield from self._one_of((self._opening,))) == END:
                    self._raw_is_content()
                    continue
            if (yield from self._call()):
                in_section = bool(closings)
                yield from self._spaces()

    def _call(self) -> Deciding:
        """A call after its opening; False if it is none, and so content."""
        name = ""
        if not self._before_name or (yield from self._one_of((self._before_name,))) != END:
            name = yield from self._name()
        yield from self._spaces()
        first = yield from self._next()
        self._unread(first)
        if first == END and name in self._names:
            first = "{"
        if name not in self._names or first != "{":
            self._raw_is_content()
            return False
        self._drop_raw()
        self._emit("call", name)
        is_whole = yield from self._value(self._argument)
        if is_whole or not (yield from self._is_at_end()):
            self._emit("end")
        if self._after:
            yield from self._spaces()
            for part in self._after.split("\n"):
                yield from self._spaces()
                if part:
                    yield from self._one_of((part,))
        return True

    def _name(self) -> Reading:
        """What is written up to the arguments, without the id that some models put there."""
        mark = self._before_arguments
        read = ""
        while not read.endswith(mark):
            character = yield from self._next()
            if character == END or len(read) > MAX_NAME_CHARACTERS + len(mark):
                self._unread(character)
                return END
            read += character
        name = read.removesuffix(mark)
        if self._before_index:
            name = name.partition(self._before_index)[0]
        for other in self._format.inner_marks:
            name = name.partition(other)[0]
        return name.strip()

"""The messages of gpt-oss: channels for reasoning, remarks, calls and the answer.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant
    <|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>

https://cookbook.openai.com/articles/openai-harmony
"""

from quire.server.openai.tools.character_parser import END, CharacterParser, Reading, Steps
from quire.server.openai.tools.events import Kind
from quire.server.openai.tools.formats import HARMONY, ToolFormat

_RECIPIENT = "to="
_NAMESPACE = "functions."


class HarmonyMessages(CharacterParser):
    """Reads messages; calls of functions that are not in `names` are content. `format_` is harmony
    as its markers are spelled here."""

    def __init__(self, format_: ToolFormat = HARMONY, names: frozenset[str] = frozenset()) -> None:
        self._names = names
        self._channel, self._message, self._start, _ = format_.openings
        self._openings = format_.openings
        self._ends = (*format_.closings, self._start, self._channel)
        self._has_content = self._has_reasoned = False
        super().__init__(frozenset((*format_.openings, *format_.closings)))

    def _run(self) -> Steps:
        yield from self._rest_of_message()
        while True:
            header = yield from self._header()
            if header == END:
                return
            yield from self._body(header)

    def _rest_of_message(self) -> Steps:
        """A reply that begins without a header goes on with a message of the prompt."""
        self._begin_raw()
        yield from self._spaces()
        begun = yield from self._one_of((*self._openings, _RECIPIENT))
        if begun != END:
            self._drop_raw()
            self._unread(begun)
        else:
            self._raw_is_content()
            yield from self._body(self._message)

    def _header(self) -> Reading:
        """What precedes a message. A reply that is cut in one has no more to say."""
        read: list[str] = []
        while (yield from self._one_of((self._message,))) == END:
            character = yield from self._next()
            if character == END:
                return END
            read.append(character)
        return "".join((*read, self._message))

    def _body(self, header: str) -> Steps:
        for marker in self._hidden:
            header = header.replace(marker, f" {marker} ")
        words = header.split()
        channel = words[words.index(self._channel) + 1] if self._channel in words[:-1] else "final"
        recipients = [word for word in words if word.startswith(_RECIPIENT)]
        name = recipients[0][len(_RECIPIENT) :].removeprefix(_NAMESPACE) if recipients else ""
        if name in self._names:
            yield from self._call(name)
            return
        kind: Kind = "reasoning" if channel == "analysis" and not recipients else "content"
        if self._has_content if kind == "content" else self._has_reasoned:
            self._emit(kind, "\n")
        if kind == "content":
            self._has_content = True
        else:
            self._has_reasoned = True
            self._begin_reasoning()
        yield from self._end(kind)

    def _call(self, name: str) -> Steps:
        """The arguments, up to the end of the message or of their JSON."""
        self._emit("call", name)
        yield from self._spaces()
        is_whole = yield from self._value(self._argument)
        if is_whole:
            self._emit("end")
            yield from self._end("content")
        elif (yield from self._end("arguments")) != END:
            self._emit("end")

    def _end(self, kind: Kind) -> Reading:
        """The rest of a message; returns the marker that ends it."""
        marker = yield from self._until(self._ends, kind)
        if kind == "reasoning":
            self._end_reasoning(marker)
        if marker in (self._channel, END):
            self._unread(marker)
        return marker

"""The messages of gpt-oss: channels for reasoning, remarks, calls and the answer.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant
    <|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>

https://cookbook.openai.com/articles/openai-harmony
"""

from quire.server.openai.tools.character_parser import END, CharacterParser, Reading, Steps
from quire.server.openai.tools.events import Kind
from quire.server.openai.tools.formats import HARMONY

_CHANNEL, _MESSAGE, _START, _ = HARMONY.openings
_RECIPIENT = "to="
_NAMESPACE = "functions."


class HarmonyMessages(CharacterParser):
    """Reads messages; calls of functions that are not in `names` are content."""

    def __init__(self, names: frozenset[str] = frozenset()) -> None:
        self._names = names
        self._has_content = self._has_reasoned = False
        super().__init__(frozenset((*HARMONY.openings, *HARMONY.closings)))

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
        begun = yield from self._one_of((*HARMONY.openings, _RECIPIENT))
        if begun != END:
            self._drop_raw()
            self._unread(begun)
        else:
            self._raw_is_content()
            yield from self._body(_MESSAGE)

    def _header(self) -> Reading:
        """What precedes a message. A reply that is cut in one has no more to say."""
        read: list[str] = []
        while (yield from self._one_of((_MESSAGE,))) == END:
            character = yield from self._next()
            if character == END:
                return END
            read.append(character)
        return "".join((*read, _MESSAGE))

    def _body(self, header: str) -> Steps:
        for marker in (*HARMONY.openings, *HARMONY.closings):
            header = header.replace(marker, f" {marker} ")
        words = header.split()
        channel = words[words.index(_CHANNEL) + 1] if _CHANNEL in words[:-1] else "final"
        recipients = [word for word in words if word.startswith(_RECIPIENT)]
        name = recipients[0][len(_RECIPIENT) :].removeprefix(_NAMESPACE) if recipients else ""
        kind: Kind = "reasoning" if channel == "analysis" and not recipients else "content"
        if name in self._names:
            kind = "arguments"
            self._emit("call", name)
        elif kind == "content":
            if self._has_content:
                self._emit(kind, "\n")
            self._has_content = True
        elif self._has_reasoned:
            self._emit(kind, "\n")
        self._has_reasoned = self._has_reasoned or kind == "reasoning"
        marker = yield from self._until((*HARMONY.closings, _START, _CHANNEL), kind)
        if kind == "arguments" and marker != END:
            self._emit("end")
        if marker in (_CHANNEL, END):
            self._unread(marker)

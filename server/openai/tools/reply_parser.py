"""`ReplyParser`: one choice's text to reasoning, content and calls, whatever the model's format."""

from collections.abc import Callable, Iterable, Iterator

from quire.pipelines.text.detokenizer import CONTROL_MARK
from quire.server.openai.tools.character_parser import SPACES, CharacterParser
from quire.server.openai.tools.events import Event, joined


class ReplyParser:
    """Runs a reply through `parsers`: each reads the content that the one before it found.

    White space around calls and after reasoning is dropped. `has_marks`: control tokens in the text
    have a CONTROL_MARK, which nobody is to see.
    """

    def __init__(
        self,
        parsers: Iterable[CharacterParser],
        *,
        shows_reasoning: bool = True,
        has_marks: bool = False,
    ) -> None:
        self._parsers = tuple(parsers)
        self._shows_reasoning = shows_reasoning
        self._has_marks = has_marks
        self._spaces = ""
        self._reasoning_spaces = ""
        self._has_content = False
        self.num_calls = 0
        self.in_call = False
        """Whether the last call is incomplete."""
        self.on_finish: Callable[[int], None] | None = None
        """Told the number of calls when the text ends."""

    def feed(self, text: str) -> list[Event]:
        """What `text` adds."""
        return joined(list(self._seen(self._fed([Event("content", text)], 0))))

    def finish(self) -> list[Event]:
        """What is left when no more text comes."""
        events: list[Event] = []
        for stage, parser in enumerate(self._parsers):
            events += self._fed(parser.finish(), stage + 1)
        found = list(self._seen(events))
        if self._spaces and not self.num_calls:
            found.append(Event("content", self._spaces))
        if self.on_finish is not None:
            self.on_finish(self.num_calls)
        return joined(found)

    def _fed(self, events: list[Event], stage: int) -> list[Event]:
        """`events` after the parsers from `stage` on."""
        for parser in self._parsers[stage:]:
            passed: list[Event] = []
            for event in events:
                if event.kind == "content":
                    passed += parser.feed(event.text)
                else:
                    passed.append(event)
            events = passed
        return events

    def _seen(self, events: list[Event]) -> Iterator[Event]:
        for kind, given in events:
            text = given.replace(CONTROL_MARK, "") if self._has_marks else given
            if kind == "reasoning":
                if self._shows_reasoning:
                    text = self._reasoning_spaces + text
                    kept = text.rstrip(SPACES)
                    self._reasoning_spaces = text[len(kept) :]
                    yield Event(kind, kept)
                continue
            self._reasoning_spaces = ""
            if kind == "content":
                text = self._spaces + text
                if self.num_calls and not self._has_content:
                    text = text.lstrip(SPACES)
                kept = text.rstrip(SPACES)
                self._spaces = text[len(kept) :]
                self._has_content = self._has_content or bool(kept)
                yield Event(kind, kept)
                continue
            if kind == "call":
                self.num_calls += 1
                self._spaces = ""
            self.in_call = kind != "end"
            yield Event(kind, text)

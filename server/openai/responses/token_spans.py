"""Which tokens of a reply are text of its messages, and not of reasoning, calls or markers."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from orjson import Fragment

from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.tools.events import Event, Kind
from quire.server.openai.tools.reply_parser import ReplyParser


class Piece(NamedTuple):
    """An `Event`, and the log-probabilities of the tokens that it is made of if it is content."""

    kind: Kind
    text: str
    logprobs: tuple[Fragment, ...] = ()


class _Token(NamedTuple):
    start: int
    """Characters of the reply before it."""
    logprob: Fragment


class PieceReader:
    """Reads a reply's deltas through `parser`; None: all of it is content.

    With log-probabilities the parser gets the text token by token, whatever the deltas are. What it
    holds back and then tells as content is found again in the text since the last thing it told.
    """

    def __init__(self, parser: ReplyParser | None) -> None:
        self._parser = parser
        self._position = 0
        self._tokens: deque[_Token] = deque()
        """Those that begin in `_untold` or after it."""
        self._untold = ""

    def read(self, delta: ChoiceDelta, logprobs: Sequence[Fragment]) -> list[Piece]:
        """What `delta` adds; `logprobs` are of its tokens, each a `TokenLogprob` in JSON, or none."""
        self._tokens.extend(map(_Token, delta.offsets, logprobs))
        begin, end = self._position, self._position + len(delta.text)
        cuts = [token.start for token in self._tokens if begin < token.start < end]
        pieces: list[Piece] = []
        for cut in [*cuts, end]:
            if cut > self._position:
                text = delta.text[self._position - begin : cut - begin]
                self._position = cut
                pieces += self._told(self._parsed(text), text)
        if delta.finish_reason is not None and self._parser is not None:
            pieces += self._told(self._parser.finish(), "")
        return pieces

    def _parsed(self, text: str) -> list[Event]:
        return [Event("content", text)] if self._parser is None else self._parser.feed(text)

    def _told(self, events: Sequence[Event], text: str) -> list[Piece]:
        if not self._tokens:
            self._untold = ""
            return [Piece(*event) for event in events]
        self._untold += text
        return [
            Piece(*event, self._content(event.text) if event.kind == "content" else self._drop())
            for event in events
        ]

    def _content(self, text: str) -> tuple[Fragment, ...]:
        """Those of the tokens that begin in `text`."""
        begin = 0 if self._untold.startswith(text) else self._untold.rfind(text)
        if begin < 0:
            # A control token's mark was taken out of it.
            begin, text = 0, self._untold
        start = self._position - len(self._untold) + begin
        found: list[Fragment] = []
        while self._tokens and self._tokens[0].start < start + len(text):
            token = self._tokens.popleft()
            if token.start >= start:
                found.append(token.logprob)
        self._untold = self._untold[begin + len(text) :]
        return tuple(found)

    def _drop(self) -> tuple[Fragment, ...]:
        while self._tokens and self._tokens[0].start < self._position:
            self._tokens.popleft()
        self._untold = ""
        return ()

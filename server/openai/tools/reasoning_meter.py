"""`ReasoningMeter`: how many tokens of a choice are reasoning."""

from array import array
from bisect import bisect_left
from collections.abc import Sequence

from quire.server.openai.tools.character_parser import CharacterParser


class ReasoningMeter:
    """Counts the tokens whose text begins inside the reasoning, and not in the marks around it.

    It reads the choice's text once more, so the count is of the tokens alone, whatever the pieces
    they came in. `parser` finds the reasoning; None where there is none.
    """

    def __init__(self, parser: CharacterParser | None) -> None:
        self._parser = parser
        self._offsets = array("q")
        self._is_finished = False

    def feed(self, text: str, offsets: Sequence[int], *, is_last: bool) -> None:
        """Add a delta; `offsets` are the characters of the choice's text before each of its tokens."""
        if self._parser is None:
            return
        self._offsets.extend(offsets)
        self._parser.feed(text)
        if is_last:
            self._parser.finish()
            self._is_finished = True

    @property
    def num_tokens(self) -> int:
        """Those so far; of what may be a mark, none. It never falls."""
        if self._parser is None:
            return 0
        before = 0
        for start, end in self._parser.reasoning_spans:
            if end is None and not self._is_finished:
                end = self._parser.settled
            stop = len(self._offsets) if end is None else bisect_left(self._offsets, end)
            before += max(0, stop - bisect_left(self._offsets, start))
        return before

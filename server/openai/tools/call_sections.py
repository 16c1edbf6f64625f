"""What formats share whose calls stand together: an opening, calls, a closing, and text around."""

from abc import abstractmethod

from quire.server.openai.tools.character_parser import END, CharacterParser, Deciding, Steps
from quire.server.openai.tools.formats import ToolFormat


class CallSections(CharacterParser):
    """Reads `format_` for the functions of `names`; what is outside of sections is content."""

    def __init__(
        self, format_: ToolFormat, names: frozenset[str], hidden: frozenset[str] = frozenset()
    ) -> None:
        self._format = format_
        self._names = names
        super().__init__(hidden)

    def _run(self) -> Steps:
        is_closed = True
        if self._format.is_bare:
            self._begin_raw()
            yield from self._spaces()
            is_closed = yield from self._section("")
        openings, closings = self._format.openings, self._format.closings
        while True:
            markers = openings if is_closed else (*openings, *closings)
            marker = yield from self._until(markers, "content")
            if marker == END:
                return
            if marker in openings:
                self._begin_raw(marker)
                yield from self._spaces()
                is_closed = yield from self._section(marker)
            else:
                is_closed = True

    @abstractmethod
    def _section(self, opening: str) -> Deciding:
        """What follows an opening, or the start; whether it was closed, or is content."""

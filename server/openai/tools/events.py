"""What a parser finds in a reply's text, in the order of the text."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Kind = Literal["content", "reasoning", "call", "arguments", "end"]


class Event(NamedTuple):
    """`text` is a piece of content, of reasoning or of the open call's arguments; of a `call` the
    function's name. `end`: the open call is complete."""

    kind: Kind
    text: str = ""


def joined(events: Sequence[Event]) -> list[Event]:
    """The same with pieces of one kind that follow each other as one, and without empty ones."""
    result: list[Event] = []
    pieces: list[str] = []
    kind: Kind = "end"
    for event in events:
        if event.kind != kind or kind in ("call", "end"):
            if pieces:
                result.append(Event(kind, "".join(pieces)))
                pieces = []
            kind = event.kind
        if kind in ("call", "end"):
            result.append(event)
        elif event.text:
            pieces.append(event.text)
    if pieces:
        result.append(Event(kind, "".join(pieces)))
    return result

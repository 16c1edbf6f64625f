"""Replies of a model of some tool format, read as a client assembles them."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.server.openai.tools.dialect import Dialect
from quire.server.openai.tools.formats import format_named
from quire.server.openai.tools.thinking import THINK_TAGS

NAMES = frozenset({"f", "get_weather", "no-args"})
PROPERTIES = {
    "a": {"type": "string"},
    "city": {"type": "array"},
    "x_1": {"anyOf": [{"type": "string"}, {"type": "null"}]},
}
SCHEMAS = {name: {"type": "object", "properties": PROPERTIES} for name in NAMES}


@dataclass
class Said:
    """A reply as a client assembles it."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    is_open: bool = False


def dialect_of(name: str, *, hidden: bool = False, think: bool = False) -> Dialect:
    tools = format_named(name)
    marks = [*tools.openings, *tools.closings, *tools.inner_marks]
    return Dialect(
        tools=tools,
        is_harmony=name == "harmony",
        think=THINK_TAGS[0] if think else None,
        specials={mark: at for at, mark in enumerate(marks)} if hidden else {},
    )


def read(dialect: Dialect, chunks: Iterable[str], opening: Any = "before") -> Said:
    parser = dialect.parser(NAMES, opening, schemas=SCHEMAS)
    assert parser is not None
    said = Said()
    events = [event for chunk in chunks for event in parser.feed(chunk)] + parser.finish()
    for kind, text in events:
        if kind == "content":
            said.content += text
        elif kind == "reasoning":
            said.reasoning += text
        elif kind == "call":
            said.calls.append((text, ""))
        elif kind == "arguments":
            name, before = said.calls[-1]
            said.calls[-1] = (name, before + text)
    said.is_open = parser.in_call
    assert parser.num_calls == len(said.calls)
    return said


def cut(text: str, borders: Sequence[int]) -> list[str]:
    places = [0, *sorted(min(border, len(text)) for border in borders), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]

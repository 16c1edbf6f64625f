"""What constrains the text of a context: a grammar, compiled for one model's vocabulary."""

from typing import Any, Literal, Protocol

import msgspec

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "ebnf", "structural_tag"]


class GrammarSpec(msgspec.Struct, frozen=True):
    """What a request asks for. `source` is a JSON Schema, a regular expression, a JSON list of
    strings, an EBNF grammar or a structural tag, by `kind`; empty for `json_object`."""

    kind: GrammarKind
    source: str = ""


class Grammar(msgspec.Struct, frozen=True, array_like=True, weakref=True):
    """A compiled grammar: `data` as xgrammar serializes it, `digest` of what it was made from."""

    digest: str
    data: str


class TokenMatcher(Protocol):
    """Where a context's text stands in its grammar."""

    @property
    def is_too_slow(self) -> bool:
        """Whether it holds up the rows beside it more than a request may."""

    @property
    def vocab_size(self) -> int:
        """The width of the logits."""

    def fill(self, bitmask_RW: Any, row: int) -> bool:
        """Set the bits of the tokens that can follow in a row of an int32 tensor, 32 tokens a word;
        False, and nothing is set, where all of them can."""

    def accept(self, token: int) -> None:
        """Go on past a generated token."""

"""`Dialect`: how one model writes calls and reasoning, found once for the served model."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from quire.pipelines.chat_template import ChatTemplate
from quire.pipelines.text.detokenizer import CONTROL_MARK
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.openai.tools.character_parser import CharacterParser
from quire.server.openai.tools.formats import HARMONY, ToolFormat, format_named, format_of
from quire.server.openai.tools.harmony import HarmonyMessages
from quire.server.openai.tools.json_calls import JsonCalls
from quire.server.openai.tools.named_calls import NamedCalls
from quire.server.openai.tools.pythonic_calls import PythonicCalls
from quire.server.openai.tools.reply_parser import ReplyParser
from quire.server.openai.tools.thinking import THINK_TAGS, Thinking, ThinkTags, think_tags_of
from quire.server.openai.tools.xml_calls import XmlCalls

Opening = Literal["inside", "after", "before"]
"""Where in the reasoning a prompt ends: inside it, after it, or before what may be one."""
_PROBE = "quire-probe"
_SPACES = (" ", "\n", "\n\n", "\r\n")
"""What models write before their reasoning."""


class ThinkIds(NamedTuple):
    """The tokens of the tags around reasoning, and those of white space before it."""

    opening: int
    closing: int
    spaces: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: TextTokenizer, tags: ThinkTags) -> "ThinkIds | None":
        """None where a tag is not one token."""
        ids = tokenizer.added_tokens
        if tags.opening not in ids or tags.closing not in ids:
            return None
        spaces = (tokenizer.encode_plain(text, starts_fresh=False) for text in _SPACES)
        alone = sorted({found[0] for found in spaces if len(found) == 1})
        return cls(ids[tags.opening], ids[tags.closing], tuple(alone))


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """`tools` and `think` are None where the model has no calls, or no reasoning, that we know.

    `specials` are the ids of the strings around them that are control tokens; `think_ids` are those of
    the tags of reasoning, where each is one token. `wants_json_text`: the chat template prints a
    call's arguments as they are, so they must be text.
    """

    tools: ToolFormat | None = None
    think: ThinkTags | None = None
    is_harmony: bool = False
    specials: Mapping[str, int] = field(default_factory=dict)
    think_ids: ThinkIds | None = None
    wants_json_text: bool = False
    wants_null_content: bool = False

    @classmethod
    def of(
        cls,
        tokenizer: TextTokenizer,
        tool_call_parser: str = "auto",
        reasoning_parser: str = "auto",
    ) -> "Dialect":
        """That of a model by its chat template; the parsers are settings of those names."""
        template = tokenizer.chat_template
        source = "" if template is None else template.source
        tools: ToolFormat | None = None
        if tool_call_parser == "auto":
            tools = format_of(source)
        elif tool_call_parser != "none":
            tools = format_named(tool_call_parser)
        think: ThinkTags | None = None
        if reasoning_parser == "think":
            think = think_tags_of(source) or THINK_TAGS[0]
        elif reasoning_parser == "auto" and not HARMONY.matches(source):
            think = think_tags_of(source)
        is_harmony = (
            tools is HARMONY
            or reasoning_parser == "harmony"
            or (reasoning_parser == "auto" and HARMONY.matches(source))
        )
        known = tokenizer.special_tokens
        specials = {mark: known[mark] for mark in _marks(tools, think, is_harmony) if mark in known}
        if is_harmony:
            think = None
        return cls(
            tools=tools,
            think=think,
            think_ids=None if think is None else ThinkIds.of(tokenizer, think),
            is_harmony=is_harmony,
            specials=specials,
            wants_json_text=template is not None and _wants_json_text(template),
            wants_null_content="content'] is none" in source or ".content is none" in source,
        )

    def opening(self, prompt_end: str) -> Opening:
        """Where a prompt that ends with `prompt_end` leaves off."""
        if self.think is None:
            return "before" if self.is_harmony else "after"
        end = prompt_end.rstrip()
        if end.endswith(self.think.opening):
            return "inside"
        return "after" if end.endswith(self.think.closing) else "before"

    def shown_tokens(self, opening: Opening, *, has_tools: bool) -> frozenset[int]:
        """Control tokens that must have text for the parsers to see."""
        think = None if opening == "after" else self.think
        marks = _marks(self.tools if has_tools else None, think, self.is_harmony)
        return frozenset(self.specials[mark] for mark in marks if mark in self.specials)

    def shown(self, text: str) -> str:
        """`text` as the parsers see it, where its markers are control tokens."""
        for mark in self.specials:
            text = text.replace(mark, CONTROL_MARK + mark)
        return text

    def reasoning_parser(self, names: frozenset[str], opening: Opening) -> CharacterParser | None:
        """What tells reasoning in a reply; None where there is none."""
        if self.is_harmony:
            return HarmonyMessages(HARMONY.rewritten(self.shown), names)
        if self.think is None or opening == "after":
            return None
        return Thinking(ThinkTags(*map(self.shown, self.think)), is_open=opening == "inside")

    def parser(
        self,
        names: frozenset[str],
        opening: Opening,
        *,
        shows_reasoning: bool = True,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> ReplyParser | None:
        """For a reply that may call the functions of `names`, whose arguments are of `schemas`; None
        where all of it is content."""
        reasoning = self.reasoning_parser(names, opening)
        parsers: list[CharacterParser] = [] if reasoning is None else [reasoning]
        if self.tools is not None and names and not self.is_harmony:
            hidden = frozenset(map(self.shown, self.specials))
            format_ = self.tools.rewritten(self.shown)
            if format_.family == "xml":
                parsers.append(XmlCalls(format_, names, hidden, schemas))
            else:
                parsers.append(_FAMILIES[format_.family](format_, names, hidden))
        if not parsers:
            return None
        has_marks = bool(self.specials)
        return ReplyParser(parsers, shows_reasoning=shows_reasoning, has_marks=has_marks)


_FAMILIES: Mapping[str, type[JsonCalls] | type[NamedCalls] | type[PythonicCalls]] = {
    "json": JsonCalls,
    "named": NamedCalls,
    "pythonic": PythonicCalls,
}


def _marks(tools: ToolFormat | None, think: ThinkTags | None, is_harmony: bool) -> Collection[str]:
    marks: list[str] = list(think or ())
    if is_harmony:
        marks += [*HARMONY.openings, *HARMONY.closings]
    if tools is not None:
        marks += [*tools.openings, *tools.closings, *tools.inner_marks]
    return marks


def _wants_json_text(template: ChatTemplate) -> bool:
    """Whether arguments that are an object do not come out as JSON."""
    call = {"name": "f", "arguments": {_PROBE: _PROBE}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": None if "content'] is none" in template.source else "",
            "tool_calls": [{"id": "abcdefghi", "type": "function", "function": call}],
        },
    ]
    try:
        printed = template.render(messages, add_generation_prompt=False)
    except ValueError:
        return True
    return f"'{_PROBE}'" in printed

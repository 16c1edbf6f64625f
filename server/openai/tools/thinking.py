"""Reasoning between tags at the start of a reply: `<think>...</think>`, then the answer."""

from typing import NamedTuple

from quire.server.openai.tools.character_parser import END, CharacterParser, Steps


class ThinkTags(NamedTuple):
    opening: str
    closing: str


THINK_TAGS = (ThinkTags("<think>", "</think>"), ThinkTags("[THINK]", "[/THINK]"))


def think_tags_of(template: str) -> ThinkTags | None:
    """The tags that a chat template's source knows."""
    return next((tags for tags in THINK_TAGS if tags.closing in template), None)


class Thinking(CharacterParser):
    """Tells reasoning from content; white space after a tag belongs to neither.

    `is_open`: the prompt ended inside the reasoning.
    """

    def __init__(self, tags: ThinkTags, *, is_open: bool) -> None:
        self._tags = tags
        self._is_open = is_open
        super().__init__()

    def _run(self) -> Steps:
        if not self._is_open:
            self._begin_raw()
            yield from self._spaces()
            self._is_open = (yield from self._one_of((self._tags.opening,))) != END
            if self._is_open:
                self._drop_raw()
            else:
                self._raw_is_content()
        if self._is_open:
            self._begin_reasoning()
            yield from self._spaces()
            mark = yield from self._until((self._tags.closing,), "reasoning")
            self._end_reasoning(mark)
            if mark == END:
                return
            yield from self._spaces()
        yield from self._until((), "content")

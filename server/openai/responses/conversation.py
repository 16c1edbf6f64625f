"""From items to the messages that a chat template knows."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quire.server.openai.conversation import Message
from quire.server.openai.responses.items import KeptItem
from quire.server.openai.tools.request import CalledFunction, MessageToolCall

_MESSAGE = re.compile(r"messages\.(?P<message>\d+)(?:\.tool_calls\.(?P<call>\d+)(?:\.function)?)?")


@dataclass
class _Turn:
    """What the assistant said and did before others had their say."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[MessageToolCall] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def takes_text(self) -> bool:
        """Whether another message can belong to this turn: results must follow their calls."""
        return not self.texts or bool(self.calls)

    def message(self) -> Message:
        return Message.model_construct(
            role="assistant",
            content=None if self.calls and not self.texts else "".join(self.texts),
            tool_calls=self.calls,
            reasoning_content="".join(self.reasoning) or None,
        )


class Messages:
    """Collects messages from items. What the assistant thought, said and called becomes one message,
    as it is in a chat."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._turn: _Turn | None = None
        self._names: dict[tuple[int, int | None], str] = {}
        self._head = 0
        self._skipped = 0

    def instruct(self, instructions: str) -> None:
        self._messages.append(Message.model_construct(role="system", content=instructions))
        self._names[0, None] = "instructions"
        self._head = 1

    def add(self, item: KeptItem, place: str) -> None:
        """`place` is what the client calls the item."""
        kind = item["type"]
        if kind == "message" and item["role"] == "assistant":
            turn = self._open(takes_it=self._turn is not None and self._turn.takes_text(), at=place)
            turn.texts.append(_text(item["content"]))
        elif kind == "reasoning":
            parts = item["content"] or item["summary"]
            turn = self._open(takes_it=self._turn is not None and self._turn.takes_text(), at=place)
            turn.reasoning.append(_text(parts))
        elif kind == "function_call":
            turn = self._open(takes_it=self._turn is not None, at=place)
            turn.places.append(place)
            turn.calls.append(
                MessageToolCall.model_construct(
                    id=item["call_id"],
                    function=CalledFunction.model_construct(
                        name=item["name"], arguments=item["arguments"]
                    ),
                )
            )
        else:
            self._close()
            self._names[len(self._messages), None] = place
            self._messages.append(_other_message(item))

    def finish(self) -> list[Message]:
        """All messages; there will be no more."""
        self._close()
        return self._messages

    @property
    def beginnings(self) -> list[int]:
        """How many of the oldest messages may be left out: results stay with their calls."""
        rest = self._messages[self._head :]
        return [count for count in range(1, len(rest)) if rest[count].role != "tool"]

    def without(self, count: int) -> list[Message]:
        """The messages but the oldest, besides the instructions; `renamed` is then about these."""
        self._skipped = count
        return [*self._messages[: self._head], *self._messages[self._head + count :]]

    def renamed(self, text: str) -> str:
        """`text` with the messages in it called as the client calls their items."""
        return _MESSAGE.sub(self._name, text)

    def _name(self, found: re.Match[str]) -> str:
        index = int(found["message"])
        if index >= self._head:
            index += self._skipped
        call = None if found["call"] is None else int(found["call"])
        return self._names.get((index, call), found[0])

    def _open(self, *, takes_it: bool, at: str) -> _Turn:
        if not takes_it:
            self._close()
        if self._turn is None:
            self._turn = _Turn()
            self._names[len(self._messages), None] = at
        return self._turn

    def _close(self) -> None:
        if self._turn is None:
            return
        index = len(self._messages)
        for call, place in enumerate(self._turn.places):
            self._names[index, call] = place
        self._messages.append(self._turn.message())
        self._turn = None


def add_all(messages: Messages, items: Iterable[KeptItem], prefix: str | None = None) -> None:
    """Add items in order; they are called by their place in the field `prefix`, or by their id."""
    for index, item in enumerate(items):
        messages.add(item, f"item {item['id']}" if prefix is None else f"{prefix}.{index}")


def _other_message(item: KeptItem) -> Message:
    if item["type"] == "message":
        return Message.model_construct(role=item["role"], content=_text(item["content"]))
    output = item["output"]
    return Message.model_construct(
        role="tool",
        content=output if isinstance(output, str) else _text(output),
        tool_call_id=item["call_id"],
        name=item.get("name"),
    )


def _text(parts: Iterable[Mapping[str, str]]) -> str:
    """Parts are joined by line breaks, as those of a chat's messages."""
    return "\n".join(part["text"] for part in parts)

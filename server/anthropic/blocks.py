"""Content blocks and messages, as a client may send them.

https://platform.claude.com/docs/en/api/messages
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from quire.config.limits import LIMITS
from quire.server.openai.known_fields import EMPTY, NEVER, Harmless, unsupported
from quire.server.openai.request_model import RequestModel, refusal

_SERVED = ("text", "thinking", "tool_use", "tool_result")


class Block(RequestModel):
    """Base of the blocks. What is cached does not depend on `cache_control`."""

    without_effect: ClassVar[Mapping[str, type]] = {"cache_control": dict}


class TextBlock(Block):
    """A piece of a message's text."""

    unsupported: ClassVar[Mapping[str, Harmless]] = {"citations": EMPTY}

    type: Literal["text"]
    text: str = Field(description="The piece.")


class ThinkingBlock(Block):
    """Reasoning of an earlier turn. Its signature is not checked: the text is the client's."""

    without_effect: ClassVar[Mapping[str, type]] = {**Block.without_effect, "signature": str}

    type: Literal["thinking"]
    thinking: str = Field(description="The reasoning.")


class ToolUseBlock(Block):
    """A call that the assistant made."""

    unsupported: ClassVar[Mapping[str, Harmless]] = {
        "caller": Harmless(({"type": "direct"},)),
        "toolset_name": NEVER,
    }

    type: Literal["tool_use"]
    id: str = Field(min_length=1, description="What its tool_result names.")
    name: str = Field(description="The tool.")
    input: dict[str, Any] = Field(description="The arguments.")


def _only(*kinds: str) -> BeforeValidator:
    """Refuses blocks of another type by its name."""

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            raise unsupported("type", f"{kind[:32]!r} blocks are not served here")
        return value

    return BeforeValidator(check)


def _kind_of_content(value: Any) -> str:
    return "<blocks>" if isinstance(value, list) else "<text>"


Texts = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[Annotated[TextBlock, _only("text")]], Field(fail_fast=True), Tag("<blocks>")],
    Discriminator(_kind_of_content),
]
"""Clients send an empty list for a tool that says nothing."""


class ToolResultBlock(Block):
    """What a tool said. The model reads that an error is one."""

    unsupported: ClassVar[Mapping[str, Harmless]] = {"toolset_name": NEVER}

    type: Literal["tool_result"]
    tool_use_id: str = Field(description="The call that it answers.")
    content: Texts = Field("", description="What the tool said.")
    is_error: bool = Field(False, description="The model reads that it is one.")

    @property
    def text(self) -> str:
        return f"Error: {text_of(self.content)}" if self.is_error else text_of(self.content)


def text_of(content: str | list[TextBlock] | None) -> str:
    """Blocks are joined by line breaks, as parts of OpenAI's messages are."""
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content or ())


def _kind_of_block(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in _SERVED else "<text>"


AnyBlock = Annotated[
    Annotated[
        Annotated[TextBlock, Tag("<text>")]
        | Annotated[ThinkingBlock, Tag("<thinking>")]
        | Annotated[ToolUseBlock, Tag("<tool_use>")]
        | Annotated[ToolResultBlock, Tag("<tool_result>")],
        Discriminator(_kind_of_block),
    ],
    _only(*_SERVED),
]
ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock
_OF_ROLE: Mapping[str, tuple[str, ...]] = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "tool_use"),
    "system": ("text",),
}


class MessageParam(RequestModel):
    """One turn, or a part of one: neighbours of the same role are one turn."""

    role: Literal["user", "assistant", "system"] = Field(description="Who says it.")
    content: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[
            list[AnyBlock],
            Field(min_length=1, max_length=LIMITS.messages, fail_fast=True),
            Tag("<blocks>"),
        ],
        Discriminator(_kind_of_content),
    ] = Field(description="What is said.")

    @property
    def blocks(self) -> list[ContentBlock]:
        if isinstance(self.content, str):
            return [TextBlock(type="text", text=self.content)]
        return list(self.content)

    @model_validator(mode="after")
    def _says_what_its_role_may(self) -> Self:
        for index, block in enumerate(self.blocks):
            if block.type not in _OF_ROLE[self.role]:
                raise refusal(
                    f"content.{index}.type",
                    f"must not be {block.type} in a message of the role {self.role}",
                )
        return self


@dataclass(frozen=True, slots=True)
class Turn:
    """All that one role says in a row; `begin` is the index of its first message."""

    begin: int
    role: str
    blocks: list[ContentBlock]


def turns(messages: Iterable[MessageParam]) -> list[Turn]:
    """The messages, with neighbours of one role joined."""
    found: list[Turn] = []
    for index, message in enumerate(messages):
        if not found or found[-1].role != message.role:
            found.append(Turn(index, message.role, []))
        found[-1].blocks.extend(message.blocks)
    return found

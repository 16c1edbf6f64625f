"""Messages: what a client may send as a conversation, for replies and to be tokenized."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from quire.config.limits import LIMITS
from quire.server.openai import known_fields
from quire.server.openai.known_fields import Harmless, unsupported
from quire.server.openai.request_model import RequestModel, make_nullable, refusal
from quire.server.openai.tools.request import MessageToolCall, Tools


class TextPart(RequestModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str = Field(description="The piece.")

    @field_validator("type", mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        if value in ("image_url", "input_audio", "audio_url", "video_url", "file", "refusal"):
            raise unsupported("", "only text parts are served")
        return value


def _content_kind(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


def _needs_content(schema: dict[str, Any]) -> None:
    """Say which messages need which fields, as the validators of `Message` do."""
    make_nullable(schema)
    is_given = {"not": {"type": "null"}}
    calls = {"type": "array", "minItems": 1}
    no_calls = {"anyOf": [{"type": "array", "maxItems": 0}, {"type": "null"}]}
    schema["anyOf"] = [
        {"required": ["content"], "properties": {"content": is_given, "tool_calls": no_calls}},
        {
            "required": ["tool_calls"],
            "properties": {"role": {"const": "assistant"}, "tool_calls": calls},
        },
    ]


class Message(RequestModel):
    """One message of a conversation. `reasoning` is another name of `reasoning_content`."""

    model_config = ConfigDict(json_schema_extra=_needs_content)

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who says it; developer is system, where the chat template knows no other."
    )
    content: (
        Annotated[
            Annotated[str, Tag("<text>")]
            | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag("<parts>")],
            Discriminator(_content_kind),
        ]
        | None
    ) = Field(None, description="Needed, but where an assistant's message has tool_calls.")
    name: str | None = Field(None, description="For chat templates that show it.")
    tool_call_id: str | None = Field(None, description="Of a tool's message: the call it answers.")
    tool_calls: list[MessageToolCall] = Field(
        [],
        max_length=LIMITS.tools,
        fail_fast=True,
        description="Calls that the assistant made, as the reply had them.",
    )
    reasoning_content: str | None = Field(
        None, description="The assistant's reasoning, for chat templates that show it."
    )
    reasoning: str | None = Field(None, description="The same by another name.")

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by line breaks."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or ())

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise PydanticCustomError("missing", "Field required", {"field": "content"})
        return self

    @model_validator(mode="after")
    def _only_the_assistant_calls(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise refusal("tool_calls", "belong in messages of the assistant")
        return self


class Conversation(RequestModel):
    """Messages and how the chat template makes a prompt of them."""

    messages_field: ClassVar[str] = "messages"
    """What the client calls the field of the conversation."""

    messages: list[Message] = Field(
        min_length=1, max_length=LIMITS.messages, fail_fast=True, description="The conversation."
    )
    tools: Tools = Field([], max_length=LIMITS.tools, description="What the model may call.")
    add_generation_prompt: bool = Field(
        True, description="End the prompt with the opening of the assistant's message."
    )
    continue_final_message: bool = Field(
        False, description="The last message is not ended; the reply goes on with it."
    )
    add_special_tokens: bool = Field(False, description="Besides those of the chat template.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Variables of the model's chat template; others are refused."
    )

    @property
    def asks_for_reply(self) -> bool:
        """Whether the prompt ends with the opening of the assistant's next message."""
        return self.add_generation_prompt and not self.continue_final_message

    @model_validator(mode="after")
    def _ending_agrees(self) -> Self:
        is_given = "add_generation_prompt" in self.model_fields_set
        if self.continue_final_message and self.add_generation_prompt and is_given:
            raise refusal("continue_final_message", "needs add_generation_prompt to be false")
        return self

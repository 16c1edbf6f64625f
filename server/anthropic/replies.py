"""What a client of the Messages API gets, as typed dictionaries."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class TextBlock(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingBlock(TypedDict):
    """`signature` is a digest of the reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class OutputTokensDetails(TypedDict):
    thinking_tokens: int


class Usage(TypedDict):
    """`input_tokens` are those that were computed; with those from the cache they are the prompt.
    `output_tokens_details` are told of replies in which a model may reason."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: NotRequired[OutputTokensDetails]


class Message(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: None
    usage: Usage


class TokenCount(TypedDict):
    input_tokens: int


class MessageStart(TypedDict):
    type: Literal["message_start"]
    message: Message


class BlockStart(TypedDict):
    type: Literal["content_block_start"]
    index: int
    content_block: ContentBlock


class TextDelta(TypedDict):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    type: Literal["signature_delta"]
    signature: str


class InputDelta(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(TypedDict):
    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(TypedDict):
    type: Literal["content_block_stop"]
    index: int


class End(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None
    stop_details: None


class MessageDelta(TypedDict):
    type: Literal["message_delta"]
    delta: End
    usage: Usage


class MessageStop(TypedDict):
    type: Literal["message_stop"]


class Ping(TypedDict):
    type: Literal["ping"]


BlockEvent = BlockStart | BlockDelta | BlockStop
Event = MessageStart | BlockEvent | MessageDelta | MessageStop | Ping

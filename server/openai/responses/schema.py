"""The bodies of /v1/responses, and the chat request that they stand for."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from quire.config.limits import LIMITS
from quire.server.openai.conversation import Message
from quire.server.openai.known_fields import Harmless, unsupported
from quire.server.openai.request_model import RequestModel, make_nullable, refusal
from quire.server.openai.responses import known_fields
from quire.server.openai.responses.items import Input
from quire.server.openai.responses.options import (
    AllowedChoice,
    NamedChoice,
    ReasoningConfig,
    ResponseStreamOptions,
    ResponseTool,
    ResponseToolChoice,
    TextConfig,
    only_functions,
)
from quire.server.openai.schema import ChatCompletionRequest, GenerationRequest
from quire.server.openai.tools.request import FunctionTool, ToolChoice, check_tools

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
_TOLD = "Told back with the response."


def _needs_input(schema: dict[str, Any]) -> None:
    """Say that there must be some: when it may be left out is in its description."""
    schema["properties"]["input"].pop("default")
    schema["required"] = ["input"]
    make_nullable(schema)


class ResponseInput(RequestModel):
    """What a prompt is made of."""

    model_config = ConfigDict(json_schema_extra=_needs_input)

    model: str | None = Field(None, description="One of the served names; without it the first.")
    input: Input = Field(
        [],
        description="A text of the user, or items of a conversation. May be left out beside "
        "previous_response_id.",
    )
    instructions: str | None = Field(
        None, description="A system message before all others, for this response alone."
    )
    previous_response_id: str | None = Field(
        None, description="A kept response that this one goes on from; not with its instructions."
    )
    tools: Annotated[
        list[Annotated[ResponseTool, BeforeValidator(only_functions)]], Field(fail_fast=True)
    ] = Field([], max_length=LIMITS.tools, description="What the model may call.")
    tool_choice: ResponseToolChoice = Field("auto", description="Whether and what it calls.")
    parallel_tool_calls: bool = Field(True, description="False: at most one call in a response.")
    text: TextConfig = Field(TextConfig.model_validate({}), description="The text's form.")
    reasoning: ReasoningConfig = Field(
        ReasoningConfig.model_validate({}), description="How much to reason."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Variables of the model's chat template; others are refused."
    )

    @property
    def function_tools(self) -> list[FunctionTool]:
        return [tool.function_tool for tool in self.tools]

    @property
    def function_choice(self) -> ToolChoice:
        choice = self.tool_choice
        if isinstance(choice, NamedChoice):
            return choice.named_tool
        return choice.allowed_tools if isinstance(choice, AllowedChoice) else choice

    @model_validator(mode="after")
    def _has_input(self) -> Self:
        if self.input == [] and self.previous_response_id is None:
            raise PydanticCustomError("missing", "Field required", {"field": "input"})
        return self

    @model_validator(mode="after")
    def _tools_agree(self) -> Self:
        check_tools(self.function_tools, self.function_choice)
        return self


def _known_include(value: Any) -> Any:
    if isinstance(value, str) and value not in (LOGPROBS, ENCRYPTED):
        raise unsupported("", f"only {LOGPROBS} and {ENCRYPTED} are")
    return value


class ResponsesRequest(ResponseInput, GenerationRequest):
    """The body of POST /v1/responses."""

    # Of two base classes the last one's would count.
    model_config = ConfigDict(json_schema_extra=_needs_input)

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.RESPONSES
    without_effect: ClassVar[Mapping[str, type]] = {
        "prompt_cache_retention": str,
        "prompt_cache_options": dict,
    }

    store: bool = Field(True, description="Keep the response, for a while.")
    max_output_tokens: int | None = Field(
        None, ge=1, description="Of the output; without it all there is room for."
    )
    max_tool_calls: int | None = Field(
        None, ge=1, description="Counts calls of built-in tools, of which there are none."
    )
    include: list[
        Annotated[
            Literal["message.output_text.logprobs", "reasoning.encrypted_content"],
            BeforeValidator(_known_include),
        ]
    ] = Field(
        [],
        description=f"What a response tells besides. {ENCRYPTED} adds nothing: reasoning comes as "
        "text, whole, and may be sent back so.",
    )
    top_logprobs: int = Field(0, ge=0, le=LIMITS.logprobs, description=f"Needs include {LOGPROBS}.")
    truncation: Literal["disabled", "auto"] = Field(
        "disabled",
        description="auto: leave out the oldest messages where not all fit, with a warning.",
    )
    stream_options: ResponseStreamOptions | None = Field(None, description="Needs stream.")
    metadata: dict[
        Annotated[str, Field(max_length=LIMITS.metadata_key_chars)],
        Annotated[str, Field(max_length=LIMITS.metadata_value_chars)],
    ] = Field({}, max_length=LIMITS.metadata_pairs, description=_TOLD)
    user: str | None = Field(None, description=_TOLD)
    safety_identifier: str | None = Field(None, description=_TOLD)
    prompt_cache_key: str | None = Field(None, description=_TOLD)

    @property
    def token_limit(self) -> tuple[str, int | None]:
        return "max_output_tokens", self.max_output_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.tells_logprobs else None

    @property
    def tells_logprobs(self) -> bool:
        return LOGPROBS in self.include

    @model_validator(mode="after")
    def _logprobs_agree(self) -> Self:
        if self.top_logprobs and not self.tells_logprobs:
            raise refusal("top_logprobs", f"needs include to hold {LOGPROBS}")
        return self


class InputTokensRequest(ResponseInput):
    """The body of POST /v1/responses/input_tokens."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.INPUT_TOKENS


class ChatOfResponse(ChatCompletionRequest):
    """What a `ResponsesRequest` asks for, as a chat; checked already."""

    messages_field: ClassVar[str] = "input"

    @property
    def token_limit(self) -> tuple[str, int | None]:
        return "max_output_tokens", self.max_completion_tokens


_SHARED = frozenset(GenerationRequest.model_fields) - {"model", "stream_options"}


def chat_request(request: ResponseInput, messages: Sequence[Message]) -> ChatOfResponse:
    """The chat that goes on from `messages` as `request` asks."""
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "tools": request.function_tools,
        "tool_choice": request.function_choice,
        "parallel_tool_calls": request.parallel_tool_calls,
        "reasoning_effort": request.reasoning.effort,
        "response_format": request.text.response_format(),
        "chat_template_kwargs": request.chat_template_kwargs,
    }
    if isinstance(request, ResponsesRequest):
        fields |= {name: getattr(request, name) for name in request.model_fields_set & _SHARED}
        fields |= {
            "max_completion_tokens": request.max_output_tokens,
            "logprobs": request.tells_logprobs,
            "top_logprobs": request.top_logprobs,
        }
    return ChatOfResponse.model_construct(_fields_set=set(fields), **fields)

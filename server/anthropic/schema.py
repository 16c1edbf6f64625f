"""What a client may send to the routes under /v1/messages."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from quire.config.limits import LIMITS
from quire.server.anthropic.blocks import (
    MessageParam,
    Texts,
    ToolResultBlock,
    ToolUseBlock,
    turns,
)
from quire.server.openai.known_fields import (
    CONSTRAINTS,
    EMPTY,
    ENGINE,
    NEVER,
    NO_EFFECT,
    OFF,
    SAMPLING,
    Harmless,
    unsupported,
)
from quire.server.openai.request_model import RequestModel, make_nullable, refusal
from quire.server.openai.schema import GenerationRequest, StopString, number
from quire.server.openai.tools.request import FunctionName

_UNSUPPORTED: Mapping[str, Harmless] = {
    "service_tier": Harmless(("auto", "standard_only")),
    "speed": Harmless(("standard",)),
    "inference_geo": NEVER,
    "container": NEVER,
    "mcp_servers": EMPTY,
    "context_management": Harmless(
        (
            {},
            {"edits": []},
            {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        )
    ),
    "compaction": NEVER,
    "diagnostics": Harmless(({}, {"previous_message_id": None})),
    "fallbacks": EMPTY,
    "fallback_credit_token": NEVER,
    "billing_policy": NEVER,
    "thread": OFF,
    "response_format": Harmless(hint="use output_config.format"),
    "reasoning_effort": Harmless(hint="use output_config.effort"),
    "max_completion_tokens": Harmless(hint="use max_tokens"),
    "stop": Harmless(hint="use stop_sequences"),
    "parallel_tool_calls": Harmless(hint="use tool_choice.disable_parallel_tool_use"),
}
_ONE_REPLY: Mapping[str, Harmless] = {
    "n": Harmless((1,), "one message is made"),
    "logprobs": OFF,
    "top_logprobs": NEVER,
    "prompt_logprobs": NEVER,
    "return_token_ids": OFF,
    "stream_options": Harmless(hint="the usage is always told"),
    "truncate_prompt_tokens": NEVER,
    "truncation_side": NEVER,
}
_NO_EFFECT: Mapping[str, type] = {
    **NO_EFFECT,
    "cache_control": dict,
    "user_profile_id": str,
    "workspace_id": str,
}


class Tool(RequestModel):
    """A tool of the client's. With `strict` a schema that cannot be enforced whole is refused;
    without, the input is then any object, and the reply's warning header says so."""

    unsupported: ClassVar[Mapping[str, Harmless]] = {
        "defer_loading": OFF,
        "allowed_callers": Harmless((["direct"],)),
        "input_examples": EMPTY,
    }
    without_effect: ClassVar[Mapping[str, type]] = {
        "cache_control": dict,
        "eager_input_streaming": bool,
    }

    type: Literal["custom"] = "custom"
    name: FunctionName = Field(description="As the model calls it.")
    description: str | None = Field(None, description="Shown to the model.")
    input_schema: dict[str, Any] = Field(description="A JSON Schema of an object.")
    strict: bool = Field(False, description="Refuse a schema that cannot be enforced whole.")

    @field_validator("type", mode="before")
    @classmethod
    def _is_custom(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "custom":
            raise unsupported("", "only tools of type custom are served")
        return value


class ToolChoice(RequestModel):
    """Whether and what the model calls."""

    type: Literal["auto", "any", "tool", "none"] = Field(
        description="any: at least one tool; tool: the named one."
    )
    name: FunctionName | None = Field(None, description="For type tool, and for no other.")
    disable_parallel_tool_use: bool = Field(False, description="At most one call in a reply.")

    @model_validator(mode="after")
    def _names_its_tool(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise refusal("name", "is needed for type tool, and for no other")
        return self


class Thinking(RequestModel):
    """Whether the model reasons before it answers. `display` omitted: the reply says that it did."""

    type: Literal["enabled", "disabled", "adaptive"] = Field(
        description="adaptive: as enabled, without a budget."
    )
    budget_tokens: int | None = Field(
        None, ge=1, description="For type enabled; kept where one token ends the reasoning."
    )
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="summarized: the whole reasoning, as without it."
    )

    @model_validator(mode="after")
    def _has_its_budget(self) -> Self:
        if self.type != "enabled" and self.budget_tokens is not None:
            raise refusal("budget_tokens", "is for type enabled")
        return self


class OutputFormat(RequestModel):
    """JSON of a schema, which is always enforced."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema", description="A JSON Schema.")

    model_config = ConfigDict(populate_by_name=True)


class OutputConfig(RequestModel):
    """How much to reason, and the text's form."""

    unsupported: ClassVar[Mapping[str, Harmless]] = {"task_budget": NEVER}

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="For chat templates that have a reasoning effort."
    )
    format: OutputFormat | None = Field(None, description="The text's form.")


class PromptRequest(RequestModel):
    """What makes the prompt."""

    unsupported: ClassVar[Mapping[str, Harmless]] = _UNSUPPORTED
    without_effect: ClassVar[Mapping[str, type]] = _NO_EFFECT

    model: str | None = Field(None, description="A served name; without it the first.")
    messages: list[MessageParam] = Field(
        min_length=1,
        max_length=LIMITS.messages,
        fail_fast=True,
        description="Where the last is the assistant's, the reply goes on with its text.",
    )
    system: Texts | None = Field(None, description="A system message before all others.")
    tools: list[Tool] = Field(
        [], max_length=LIMITS.tools, fail_fast=True, description="What the model may call."
    )
    tool_choice: ToolChoice | None = Field(None, description="auto when there are tools.")
    thinking: Thinking | None = Field(
        None, description="Off where it is left out and the chat template can turn it off."
    )
    output_config: OutputConfig | None = Field(None, description="Effort and form.")
    output_format: OutputFormat | None = Field(None, description="As output_config.format.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Variables of the model's chat template; others are refused."
    )

    @property
    def asked_format(self) -> OutputFormat | None:
        config = self.output_config
        return self.output_format if config is None else config.format or self.output_format

    @model_validator(mode="after")
    def _formats_agree(self) -> Self:
        if self.output_format is not None and self.output_format is not self.asked_format:
            raise refusal("output_format", "and output_config.format are the same: give one")
        return self

    @model_validator(mode="after")
    def _calls_are_answered(self) -> Self:
        """Each call by the next message of the user, and nothing else by it."""
        called: set[str] = set()
        seen: set[str] = set()
        for turn in turns(self.messages):
            index = turn.begin
            answered = {b.tool_use_id for b in turn.blocks if isinstance(b, ToolResultBlock)}
            if open_ := called - answered:
                raise refusal(
                    f"messages.{index}",
                    f"needs a tool_result for the tool_use {_shown(open_)}",
                )
            if stray := answered - called:
                raise refusal(
                    f"messages.{index}",
                    f"has a tool_result for {_shown(stray)}, which is no tool_use of the message "
                    "before",
                )
            calls = [block.id for block in turn.blocks if isinstance(block, ToolUseBlock)]
            if len(calls) > LIMITS.tools:
                raise refusal(
                    f"messages.{index}",
                    f"must have at most {LIMITS.tools} tool_use blocks, not {len(calls)}",
                )
            called = set(calls)
            if len(called) < len(calls) or called & seen:
                raise refusal(f"messages.{index}", "has a tool_use with the id of another")
            seen |= called
        if called:
            raise refusal(
                f"messages.{len(self.messages) - 1}",
                f"must not be the last, since the tool_use {_shown(called)} has no tool_result",
            )
        return self


def _shown(ids: set[str]) -> str:
    return ", ".join(repr(id[:64]) for id in sorted(ids)[:4])


class CountTokensRequest(PromptRequest):
    """The body of POST /v1/messages/count_tokens."""


def _without(schema: dict[str, Any], names: Sequence[str]) -> None:
    make_nullable(schema)
    for name in names:
        schema["properties"].pop(name, None)


class MessagesRequest(PromptRequest, GenerationRequest):
    """The body of POST /v1/messages: Anthropic's fields, and those of sampling that /v1/completions
    has."""

    unsupported: ClassVar[Mapping[str, Harmless]] = {
        **SAMPLING,
        **CONSTRAINTS,
        **ENGINE,
        **_UNSUPPORTED,
        **_ONE_REPLY,
    }
    without_effect: ClassVar[Mapping[str, type]] = _NO_EFFECT
    model_config = ConfigDict(json_schema_extra=lambda schema: _without(schema, _REFUSED))

    max_tokens: int = Field(
        ge=1, description="The reply ends sooner where the model's context does."
    )
    temperature: float = number(1.0, "0: always the likeliest token.", ge=0.0, le=1.0)
    stop_sequences: list[StopString] = Field(
        [],
        max_length=LIMITS.stop_strings,
        description="Texts that end the reply, and are not in it.",
    )

    @property
    def num_logprobs(self) -> None:
        return None


_REFUSED: tuple[str, ...] = tuple(MessagesRequest.unsupported)

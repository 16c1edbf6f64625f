"""A request of the Messages API as the chat completion that it is to the rest of the server."""

from collections.abc import Mapping, Sequence
from typing import Any

from quire.server.anthropic.blocks import (
    ContentBlock,
    MessageParam,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    text_of,
    turns,
)
from quire.server.anthropic.schema import PromptRequest
from quire.server.errors import InvalidRequest, UnsupportedParameter
from quire.server.openai.body import checked
from quire.server.openai.chat_prompt import THINKING_SWITCHES
from quire.server.openai.schema import ChatCompletionRequest
from quire.server.openai.served import ServedModel

FIELD_NAMES: Mapping[str, str] = {
    r"tools\.(\d+)\.function\.parameters": r"tools.\1.input_schema",
    r"response_format\.json_schema\.schema": "output_config.format.schema",
    "response_format": "output_config.format",
}
"""Fields of a chat completion, as they are called here."""

_TRANSLATED = frozenset({"messages", "tools", "tool_choice", "max_tokens", "chat_template_kwargs"})
_CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(request: PromptRequest, served: ServedModel) -> ChatCompletionRequest:
    """The same as a chat completion. It has no max_tokens, which here is no promise that there is
    room for them.

    Raises:
        InvalidRequest, UnsupportedParameter: the model cannot do what is asked.
    """
    fields: dict[str, Any] = {
        name: getattr(request, name)
        for name in type(request).model_fields.keys() & ChatCompletionRequest.model_fields.keys()
        if name in request.model_fields_set and name not in _TRANSLATED
    }
    fields |= _reasoning(request, served)
    rows = _rows(request)
    if rows[-1]["role"] == "assistant":
        fields |= _prefill(rows)
    fields["messages"] = rows
    fields["stop"] = getattr(request, "stop_sequences", [])
    fields["tools"] = [
        {
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.input_schema,
                "strict": tool.strict,
            }
        }
        for tool in request.tools
    ]
    if (choice := request.tool_choice) is not None:
        named = {"type": "function", "function": {"name": choice.name}}
        fields["tool_choice"] = _CHOICES.get(choice.type, named)
        fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if (format_ := request.asked_format) is not None:
        schema = {"name": "output", "schema": format_.json_schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return checked(ChatCompletionRequest, fields)


def _reasoning(request: PromptRequest, served: ServedModel) -> dict[str, Any]:
    """Whether and how long the model reasons. Where its template has a switch, that is off unless
    asked: clients that did not ask expect a text to come first. Where it has none, reasoning that
    one token ends is ended at once when it is disabled."""
    template, dialect = served.tokenizer.chat_template, served.dialect
    options = frozenset() if template is None else template.options
    asked = None if request.thinking is None else request.thinking.type
    budget = None if request.thinking is None else request.thinking.budget_tokens
    given = dict(request.chat_template_kwargs)
    switch = next((name for name in THINKING_SWITCHES if name in options), None)
    reasons = dialect.think is not None or dialect.is_harmony
    if switch is not None:
        given.setdefault(switch, asked in ("enabled", "adaptive"))
    elif asked == "enabled" and not reasons:
        raise UnsupportedParameter("thinking", "the model does not reason")
    elif asked == "disabled" and reasons:
        if dialect.think_ids is None:
            raise UnsupportedParameter("thinking", "the model always reasons")
        budget = 0
    fields: dict[str, Any] = {"chat_template_kwargs": given}
    if budget is not None and dialect.think_ids is not None:
        fields["thinking_token_budget"] = budget
    effort = None if request.output_config is None else request.output_config.effort
    if effort is not None:
        if "reasoning_effort" not in options:
            raise UnsupportedParameter(
                "output_config.effort", "the model's chat template has no option for it"
            )
        fields["reasoning_effort"] = effort
    return fields


def _rows(request: PromptRequest) -> list[dict[str, Any]]:
    """The messages of a chat completion; neighbours of one role are one turn."""
    messages = list(request.messages)
    if request.system:
        system = {"role": "system", "content": request.system}
        messages.insert(0, MessageParam.model_validate(system))
    rows: list[dict[str, Any]] = []
    for turn in turns(messages):
        is_reply = turn.role == "assistant"
        rows += [_assistant(turn.blocks)] if is_reply else _others(turn.role, turn.blocks)
    return rows


def _assistant(blocks: Sequence[ContentBlock]) -> dict[str, Any]:
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [
        {"id": block.id, "function": {"name": block.name, "arguments": block.input}}
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    row: dict[str, Any] = {
        "role": "assistant",
        "content": text_of([block for block in blocks if isinstance(block, TextBlock)]),
    }
    if any(thoughts):
        row["reasoning_content"] = "\n".join(thoughts)
    if calls:
        row["tool_calls"] = calls
    return row


def _others(role: str, blocks: Sequence[ContentBlock]) -> list[dict[str, Any]]:
    """The results of tools, which answer the message before, and then the texts as one message."""
    rows = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text}
        for block in blocks
        if isinstance(block, ToolResultBlock)
    ]
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    return [*rows, {"role": role, "content": text_of(texts)}] if texts else rows


def _prefill(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Let the reply go on with the last message, which is the assistant's; one without text opens a
    reply like any other."""
    last = rows[-1]
    if last["content"]:
        return {"continue_final_message": True}
    if "reasoning_content" in last:
        raise InvalidRequest(
            "'messages': the last one has thinking and no text that a reply could go on with",
            param="messages",
            code="invalid_value",
        )
    rows.pop()
    if not rows:
        raise InvalidRequest("'messages' must not be empty", param="messages", code="invalid_value")
    return {}

"""A conversation to the prompt's token ids, as the model's chat template writes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.pipelines.chat_template import ChatTemplate
from quire.server.engine import Engine
from quire.server.errors import InvalidRequest, UnsupportedParameter
from quire.server.openai.admission import tokenize
from quire.server.openai.conversation import Conversation, Message
from quire.server.openai.served import ServedModel
from quire.server.openai.tools.dialect import Dialect, Opening
from quire.server.openai.tools.history import History, with_tools_in_system
from quire.server.openai.tools.request import FunctionTool

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""What chat templates call the variable that turns reasoning on and off."""

_LAST_TOKENS = 16
"""Enough to hold the tag that opens the reasoning."""


@dataclass(frozen=True)
class ChatPrompt:
    """`warnings` tell the client what is odd in the conversation."""

    ids: list[int]
    warnings: list[str] = field(default_factory=list)


async def chat_prompt(
    engine: Engine,
    served: ServedModel,
    request: Conversation,
    *,
    tools: Sequence[FunctionTool] = (),
    effort: str | None = None,
    is_cut: bool = False,
) -> ChatPrompt:
    """The prompt's ids, of any length if it `is_cut` later, for a model that may call `tools` and
    should reason with `effort`.

    Raises:
        InvalidRequest: no chat template, one without such an option, or it refused the messages.
        ContextLengthExceeded: the text is too long to be tokenized at all.
    """
    template = served.tokenizer.chat_template
    if template is None:
        raise InvalidRequest(
            f"The model '{served.names[0]}' has no chat template; use /v1/completions",
            param=request.messages_field,
        )
    options = _options(template, request.chat_template_kwargs, effort)
    rows, warnings = template_messages(request.messages, template=template, dialect=served.dialect)
    rows_of_tools: list[dict[str, Any]] | None = None
    if tools and template.takes_tools:
        rows_of_tools = [tool.row for tool in tools]
        if served.dialect.is_harmony:
            # Its template takes for granted that every function has one.
            for row in rows_of_tools:
                row["function"].setdefault("description", "")
    elif tools and served.dialect.tools is not None and served.dialect.tools.tools_in_system:
        rows = with_tools_in_system(rows, tools)
    elif tools:
        raise UnsupportedParameter("tools", "the model's chat template takes no tools")
    ids = await tokenize(
        engine,
        request.messages_field,
        lambda max_length: served.tokenizer.encode_chat(
            rows,
            options,
            tools=rows_of_tools,
            add_generation_prompt=request.asks_for_reply,
            continue_final_message=request.continue_final_message,
            add_special_tokens=request.add_special_tokens,
            max_tokens=max_length,
        ),
        is_cut=is_cut,
    )
    return ChatPrompt(ids, warnings)


def opening_of(served: ServedModel, request: Conversation, prompt: Sequence[int]) -> Opening:
    """Where in the model's reasoning the reply begins."""
    dialect = served.dialect
    if request.continue_final_message and dialect.think is not None:
        opening, closing = dialect.think
        text = request.messages[-1].text
        return "inside" if text.rfind(opening) > text.rfind(closing) else "after"
    end = served.tokenizer.decode(prompt[-_LAST_TOKENS:], skip_special_tokens=False)
    return dialect.opening(end)


def template_messages(
    messages: Sequence[Message], *, template: ChatTemplate, dialect: Dialect
) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages as templates expect them, and what is odd in them.

    Templates that do not know the role developer drop or refuse it; to them it is system, whose
    place it took in OpenAI's interface.
    """
    history = History(dialect)
    rows: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        path = f"messages.{index}"
        is_renamed = message.role == "developer" and not template.knows_developer
        is_null = dialect.wants_null_content and bool(message.tool_calls) and not message.text
        row: dict[str, Any] = {
            "role": "system" if is_renamed else message.role,
            "content": None if is_null else message.text,
        }
        if message.name is not None:
            row["name"] = message.name
        if message.role == "tool":
            row.update(history.result(message.tool_call_id, message.name, path))
        elif message.tool_call_id is not None:
            row["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            row["tool_calls"] = history.calls(message.tool_calls, path)
        reasoning = message.reasoning_content or message.reasoning
        if reasoning is not None:
            row["reasoning_content"] = reasoning
            if dialect.is_harmony and not (message.tool_calls and message.text):
                row["thinking"] = reasoning
        rows.append(row)
    return rows, history.warnings


def _options(template: ChatTemplate, given: dict[str, Any], effort: str | None) -> dict[str, Any]:
    """The template's variables: those that the request sets, and one that the effort stands for."""
    try:
        template.check_options(given)
    except ValueError as error:
        param = "chat_template_kwargs"
        raise InvalidRequest(f"'{param}': {error}", param=param, code="invalid_value") from None
    if effort is None:
        return given
    if "reasoning_effort" in template.options:
        return {"reasoning_effort": effort, **given}
    for switch in THINKING_SWITCHES:
        if switch in template.options:
            return {switch: effort != "none", **given}
    raise UnsupportedParameter("reasoning_effort", "the model's chat template has no option for it")

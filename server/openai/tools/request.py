"""What a chat request says of tools: the functions, the choice among them, calls of earlier turns."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from quire.config.limits import LIMITS
from quire.server.openai import known_fields
from quire.server.openai.known_fields import Harmless, unsupported
from quire.server.openai.request_model import RequestModel, refusal

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class Function(RequestModel):
    """A function that the model may call. Its arguments follow the schema `parameters`.

    With `strict` a schema that cannot be enforced whole is refused; without, the arguments are
    then any object, and the reply's warning header says so.
    """

    name: FunctionName = Field(description="As the model calls it.")
    description: str | None = Field(None, description="Shown to the model.")
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema of an object.")
    strict: bool = Field(False, description="Refuse a schema that cannot be enforced whole.")


class FunctionTool(RequestModel):
    """A tool: only functions are served."""

    type: Literal["function"] = "function"
    function: Function = Field(description="What may be called.")

    @field_validator("type", mode="before")
    @classmethod
    def _is_function(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "function":
            raise unsupported("", "only tools of type function are served")
        return value

    @property
    def row(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        function = self.function
        given: dict[str, Any] = {"name": function.name}
        for name in ("description", "parameters"):
            value = getattr(function, name)
            if value is not None:
                given[name] = value
        return {"type": "function", "function": given}


class NamedFunction(RequestModel):
    """A function by name."""

    name: FunctionName = Field(description="One of those in tools.")


class NamedTool(RequestModel):
    """One function by name."""

    type: Literal["function"]
    function: NamedFunction = Field(description="The function to call.")


class AllowedToolsList(RequestModel):
    """Which functions, and whether one must be called."""

    mode: Literal["auto", "required"] = Field(description="required: at least one is called.")
    tools: list[NamedTool] = Field(
        min_length=1, max_length=LIMITS.tools, description="Those that may be called."
    )


class AllowedTools(RequestModel):
    """Some of the functions; the prompt still shows all of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolsList = Field(description="The functions.")


def _choice_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "<allowed>" if value.get("type") == "allowed_tools" else "<named>"
    if isinstance(value, RequestModel):
        return "<allowed>" if isinstance(value, AllowedTools) else "<named>"
    return "<mode>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedTool, Tag("<named>")]
    | Annotated[AllowedTools, Tag("<allowed>")],
    Discriminator(_choice_kind),
]
Tools = Annotated[list[FunctionTool], Field(max_length=LIMITS.tools, fail_fast=True)]


class CalledFunction(RequestModel):
    """`arguments`: JSON in a string, as the reply had it; an object is taken as well."""

    name: str = Field(description="The function.")
    arguments: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[dict[str, Any], Tag("<object>")],
        Discriminator(lambda value: "<object>" if isinstance(value, dict) else "<text>"),
    ] = Field("{}", description="JSON in a string, or the object itself.")


class MessageToolCall(RequestModel):
    """A call that the assistant made."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.TOOL_CALL
    without_effect: ClassVar[Mapping[str, type]] = {"index": int}

    id: str | None = Field(None, description="What the tool's message names as tool_call_id.")
    type: Literal["function"] = "function"
    function: CalledFunction = Field(description="What was called.")


def check_tools(tools: list[FunctionTool], choice: ToolChoice | None) -> None:
    """Raises unless names are unique and those of `choice` are among them."""
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise refusal("tools", f"must have one function called {twice!r}, not several")
    if not tools and choice not in (None, "none", "auto"):
        raise refusal("tool_choice", "needs tools")
    for name in chosen_names(choice):
        if name not in names:
            raise refusal("tool_choice", f"names {name!r}, which is not in tools")


def chosen_names(choice: ToolChoice | None) -> tuple[str, ...]:
    """The functions that a choice names; none when it is of all."""
    if isinstance(choice, NamedTool):
        return (choice.function.name,)
    if isinstance(choice, AllowedTools):
        return tuple(tool.function.name for tool in choice.allowed_tools.tools)
    return ()

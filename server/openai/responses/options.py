"""Objects in a request of Responses: the text's form, reasoning, functions and the choice of them."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from quire.config.limits import LIMITS
from quire.server.openai.known_fields import Harmless, unsupported
from quire.server.openai.request_model import RequestModel
from quire.server.openai.responses import known_fields
from quire.server.openai.schema import ReasoningEffort, StreamOptions
from quire.server.openai.structured import JsonSchemaFormat, ResponseFormat
from quire.server.openai.tools.request import (
    AllowedTools,
    AllowedToolsList,
    Function,
    FunctionName,
    FunctionTool,
    NamedFunction,
    NamedTool,
)


class PlainFormat(RequestModel):
    """Anything, or any JSON object."""

    type: Literal["text", "json_object"] = Field(description="Which of both.")


class SchemaFormat(RequestModel):
    """JSON of a schema. It is enforced whether or not `strict` is true."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="Changes nothing.")
    description: str | None = Field(None, description="Changes nothing.")
    json_schema: dict[str, Any] = Field(alias="schema", description="A JSON Schema.")
    strict: bool = Field(False, description="Changes nothing: the schema is always enforced.")


def _format_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<schema>" if kind == "json_schema" else "<plain>"


class TextConfig(RequestModel):
    """`verbosity`: no model here has such a setting; what asks for one gets a warning."""

    format: (
        Annotated[
            Annotated[PlainFormat, Tag("<plain>")] | Annotated[SchemaFormat, Tag("<schema>")],
            Discriminator(_format_kind),
        ]
        | None
    ) = Field(None, description="The text's form.")
    verbosity: Literal["low", "medium", "high"] = Field(
        "medium", description="Other values than medium change nothing and get a warning."
    )

    def response_format(self) -> ResponseFormat | None:
        """The format as a chat asks for it."""
        given = self.format
        if given is None:
            return None
        schema: JsonSchemaFormat | None = None
        if isinstance(given, SchemaFormat):
            schema = JsonSchemaFormat.model_construct(
                name=given.name, json_schema=given.json_schema, strict=given.strict
            )
        return ResponseFormat.model_construct(type=given.type, json_schema=schema)

    def shown_format(self) -> dict[str, Any]:
        """The format as a response tells it."""
        if isinstance(self.format, SchemaFormat):
            return {
                "type": "json_schema",
                "name": self.format.name,
                "description": self.format.description,
                "schema": self.format.json_schema,
                "strict": self.format.strict,
            }
        return {"type": "text" if self.format is None else self.format.type}


class ReasoningConfig(RequestModel):
    """How much the model reasons."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.REASONING

    effort: Annotated[
        ReasoningEffort | None,
        Field(description="For chat templates that have one, or that can turn reasoning off."),
    ] = None


def only_functions(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise unsupported("type", "only tools of type function are served")
    return value


class ResponseTool(RequestModel):
    """A function that the model may call; see `Function`."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.TOOL

    type: Literal["function"]
    name: FunctionName = Field(description="As the model calls it.")
    description: str | None = Field(None, description="Shown to the model.")
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema of an object.")
    strict: bool | None = Field(None, description="Refuse a schema that cannot be enforced whole.")

    def shown(self) -> dict[str, Any]:
        """The tool as a response tells it."""
        return {
            "type": self.type,
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict,
        }

    @property
    def function_tool(self) -> FunctionTool:
        function = Function.model_construct(
            name=self.name,
            description=self.description,
            parameters=self.parameters,
            strict=bool(self.strict),
        )
        return FunctionTool.model_construct(type="function", function=function)


class NamedChoice(RequestModel):
    """One function by name."""

    type: Literal["function"]
    name: FunctionName = Field(description="One of those in tools.")

    def shown(self) -> dict[str, Any]:
        """The choice as a response tells it."""
        return {"type": self.type, "name": self.name}

    @property
    def named_tool(self) -> NamedTool:
        return NamedTool.model_construct(
            type="function", function=NamedFunction.model_construct(name=self.name)
        )


class AllowedChoice(RequestModel):
    """Some of the functions; the prompt still shows all of them."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = Field(description="required: at least one is called.")
    tools: list[Annotated[NamedChoice, BeforeValidator(only_functions)]] = Field(
        min_length=1, max_length=LIMITS.tools, description="Those that may be called."
    )

    @property
    def allowed_tools(self) -> AllowedTools:
        tools = [tool.named_tool for tool in self.tools]
        listed = AllowedToolsList.model_construct(mode=self.mode, tools=tools)
        return AllowedTools.model_construct(type="allowed_tools", allowed_tools=listed)

    def shown(self) -> dict[str, Any]:
        """The choice as a response tells it."""
        return {
            "type": self.type,
            "mode": self.mode,
            "tools": [tool.shown() for tool in self.tools],
        }


def _choice_kind(value: Any) -> str:
    if not isinstance(value, dict | RequestModel):
        return "<mode>"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<allowed>" if kind == "allowed_tools" else "<named>"


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedChoice, Tag("<named>")]
    | Annotated[AllowedChoice, Tag("<allowed>")],
    Discriminator(_choice_kind),
    BeforeValidator(only_functions),
]


class ResponseStreamOptions(StreamOptions):
    """What a stream tells besides."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.STREAM_OPTIONS

"""What a request says of the form of its output: `response_format` and `structured_outputs`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import ConfigDict, Field, model_validator

from quire.config.limits import LIMITS
from quire.pipelines.core.grammar import Grammar, GrammarSpec
from quire.pipelines.structured.json_schema import NotEnforceable, enforceable
from quire.server.errors import InvalidRequest
from quire.server.grammars import GrammarCompiler
from quire.server.openai import known_fields
from quire.server.openai.body import is_deeper
from quire.server.openai.known_fields import Harmless
from quire.server.openai.request_model import RequestModel, make_nullable, refusal


class JsonSchemaFormat(RequestModel):
    """A schema by name. It is enforced whether or not `strict` is true."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        "schema", description="Changes nothing."
    )
    description: str | None = Field(None, description="Changes nothing.")
    json_schema: dict[str, Any] | bool = Field(
        alias="schema", description="A JSON Schema; what of one cannot be enforced is refused."
    )
    strict: bool = Field(False, description="Changes nothing: the schema is always enforced.")

    model_config = ConfigDict(populate_by_name=True)


def _takes_its_schema(schema: dict[str, Any]) -> None:
    make_nullable(schema)
    is_schema = {"properties": {"type": {"const": "json_schema"}}}
    no_schema = {"properties": {"json_schema": {"type": "null"}}}
    schema["if"], schema["then"], schema["else"] = (
        is_schema,
        {
            "required": ["json_schema"],
            "properties": {"json_schema": {"type": "object"}},
        },
        no_schema,
    )


class ResponseFormat(RequestModel):
    """OpenAI's: text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(json_schema_extra=_takes_its_schema)

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="Anything, any JSON object, or JSON of a schema."
    )
    json_schema: JsonSchemaFormat | None = Field(
        None, description="For type json_schema, and for no other."
    )

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise refusal("json_schema", "is needed for type json_schema, and for no other")
        return self


def _takes_one(schema: dict[str, Any]) -> None:
    make_nullable(schema)
    kinds = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
    given = {name: {"not": {"enum": [None, False, ""]}} for name in kinds}
    schema["oneOf"] = [{"required": [name], "properties": {name: given[name]}} for name in kinds]


class StructuredOutputs(RequestModel):
    """vLLM's: exactly one of a JSON Schema, a regular expression, choices, a grammar, a tag."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.STRUCTURED_OUTPUTS

    json_: dict[str, Any] | str | None = Field(
        None, alias="json", description="A JSON Schema, as an object or as text."
    )
    json_object: bool = Field(False, description="Any JSON object.")
    regex: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="The whole output matches it."
    )
    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        max_length=LIMITS.choices_of_text,
        description="The output is one of these texts.",
    )
    grammar: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="An EBNF grammar, as xgrammar reads it."
    )
    structural_tag: dict[str, Any] | str | None = Field(
        None, description="xgrammar's: free text with parts that follow grammars."
    )

    model_config = ConfigDict(populate_by_name=True, json_schema_extra=_takes_one)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = sum(
            bool(value) or value == {}
            for value in (
                *(self.json_, self.json_object, self.regex),
                *(self.choice, self.grammar, self.structural_tag),
            )
        )
        if given != 1:
            raise refusal(
                "json",
                f"and json_object, regex, choice, grammar, structural_tag: one is needed, not {given}",
            )
        return self


def grammar_spec(
    response_format: ResponseFormat | None, outputs: StructuredOutputs | None
) -> tuple[str, GrammarSpec] | None:
    """The field that constrains the output, and what it asks for; None when nothing does.

    Raises:
        InvalidRequest: both do, or a schema has a part that cannot be enforced.
    """
    format_ = response_format if response_format and response_format.type != "text" else None
    if format_ is not None and outputs is not None:
        raise _invalid("structured_outputs", "cannot be combined with response_format")
    if format_ is not None:
        if format_.json_schema is None:
            return "response_format", GrammarSpec("json_object")
        param = "response_format.json_schema.schema"
        return param, _schema_spec(format_.json_schema.json_schema, param)
    return None if outputs is None else _outputs_spec(outputs)


def _outputs_spec(outputs: StructuredOutputs) -> tuple[str, GrammarSpec]:
    field = "structured_outputs"
    if outputs.json_ is not None:
        return f"{field}.json", _schema_spec(
            _parsed(outputs.json_, f"{field}.json"), f"{field}.json"
        )
    if outputs.regex is not None:
        return f"{field}.regex", GrammarSpec("regex", outputs.regex)
    if outputs.choice is not None:
        return f"{field}.choice", GrammarSpec("choice", orjson.dumps(outputs.choice).decode())
    if outputs.grammar is not None:
        return f"{field}.grammar", GrammarSpec("ebnf", outputs.grammar)
    if outputs.structural_tag is not None:
        param = f"{field}.structural_tag"
        tag = orjson.dumps(_parsed(outputs.structural_tag, param)).decode()
        return param, GrammarSpec("structural_tag", tag)
    return f"{field}.json_object", GrammarSpec("json_object")


def _parsed(value: dict[str, Any] | str, param: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        raise _invalid(param, "is not valid JSON") from None
    if is_deeper(parsed, LIMITS.json_depth):
        raise _invalid(param, f"is nested more than {LIMITS.json_depth} levels deep")
    return parsed


def _schema_spec(schema: Any, param: str) -> GrammarSpec:
    if (size := len(orjson.dumps(schema))) > LIMITS.grammar_bytes:
        raise _invalid(param, f"has {size} bytes; the limit is {LIMITS.grammar_bytes}")
    try:
        return GrammarSpec("json_schema", orjson.dumps(enforceable(schema)).decode())
    except NotEnforceable as error:
        raise _invalid(param, str(error)) from None


async def compiled_grammar(
    compiler: GrammarCompiler,
    found: tuple[str, GrammarSpec] | None,
    *,
    ends: tuple[int, ...],
    ignore_eos: bool,
    min_tokens: int,
) -> Grammar | None:
    """The grammar of a request.

    Raises:
        InvalidRequest: it cannot be compiled, or the request could not end where the grammar does.
    """
    if found is None:
        return None
    param, spec = found
    if not ends:
        raise _invalid(param, "needs a model that has an end-of-sequence token")
    other = "tools" if param == "tools" else "structured output"
    if ignore_eos:
        raise _invalid("ignore_eos", f"cannot be combined with {other}")
    if min_tokens:
        raise _invalid("min_tokens", f"cannot be combined with {other}")
    return await compiler.compile(spec, param)


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}': {message}", param=param, code="invalid_value")

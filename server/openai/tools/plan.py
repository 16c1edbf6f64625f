"""`ReplyPlan`: what a chat request and the model's dialect make of the reply."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quire.pipelines.core.grammar import GrammarSpec
from quire.pipelines.core.sampling_params import ThinkingBudget
from quire.pipelines.structured.json_schema import NotEnforceable, enforceable, target
from quire.server.errors import InvalidRequest, UnsupportedParameter
from quire.server.openai.tools.dialect import Dialect, Opening
from quire.server.openai.tools.grammar import (
    CallRules,
    answer_grammar,
    arguments_node,
    tool_grammar,
)
from quire.server.openai.tools.reasoning_meter import ReasoningMeter
from quire.server.openai.tools.reply_parser import ReplyParser
from quire.server.openai.tools.request import (
    AllowedTools,
    Function,
    FunctionTool,
    NamedTool,
    ToolChoice,
    chosen_names,
)
from quire.server.openai.tools.structural_tag import Node

_NO_ARGUMENTS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}
_ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object", "additionalProperties": True}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class ReplyPlan:
    """`names` are the functions that the reply may call; `opening` where the prompt leaves off."""

    dialect: Dialect
    opening: Opening
    names: frozenset[str] = frozenset()
    choice: ToolChoice | None = None
    is_parallel: bool = True
    shows_reasoning: bool = True
    tools: tuple[FunctionTool, ...] = field(default=())
    on_calls: Callable[[int], None] | None = None
    """Told how many calls a choice has, where it may have some."""

    @property
    def may_go_on(self) -> bool:
        """Whether text may always follow in the grammar of the functions."""
        format_ = self.dialect.tools if self.names else None
        if format_ is None or self.dialect.is_harmony:
            return False
        return self.is_parallel and not _is_required(self.choice)

    @property
    def shown_tokens(self) -> frozenset[int]:
        """Control tokens that `parser` must see."""
        return self.dialect.shown_tokens(self.opening, has_tools=bool(self.names))

    def parser(self) -> ReplyParser | None:
        """A parser for one choice; None where all of its text is content."""
        parser = self.dialect.parser(
            self.names,
            self.opening,
            shows_reasoning=self.shows_reasoning,
            schemas={tool.function.name: tool.function.parameters or {} for tool in self.tools},
        )
        if parser is not None and self.names:
            parser.on_finish = self.on_calls
        return parser

    def thinking_budget(self, tokens: int | None) -> ThinkingBudget | None:
        """What bounds the reasoning to so many tokens.

        Raises:
            UnsupportedParameter: the model has no reasoning that one token ends.
        """
        if tokens is None:
            return None
        if self.dialect.think_ids is None:
            reason = "the model has no reasoning between two tokens; see --reasoning-parser"
            raise UnsupportedParameter("thinking_token_budget", reason)
        if self.opening == "after":
            return None
        return ThinkingBudget(tokens, *self.dialect.think_ids, is_open=self.opening == "inside")

    def reasoning_meter(self) -> ReasoningMeter:
        """What counts the tokens of reasoning of one choice."""
        return ReasoningMeter(self.dialect.reasoning_parser(self.names, self.opening))

    def grammar(
        self, answer: tuple[str, GrammarSpec] | None
    ) -> tuple[tuple[str, GrammarSpec] | None, list[str]]:
        """The field that constrains the reply and how, given what constrains its content; and what
        the client should be warned of.

        Raises:
            InvalidRequest: a strict function's parameters cannot be enforced, or the content's
                constraint cannot follow reasoning or stand beside tools.
        """
        inner = None if answer is None else answer[1]
        try:
            if self.names:
                rules, warnings = self._rules()
                return ("tools", tool_grammar(self.dialect, rules, self.opening, inner)), warnings
            if answer is None or inner is None:
                return None, []
            return (answer[0], answer_grammar(self.dialect, self.opening, inner)), []
        except ValueError as error:
            param = answer[0] if answer is not None else "tools"
            raise _invalid(param, str(error)) from None

    def _rules(self) -> tuple[CallRules, list[str]]:
        arguments: dict[str, Node] = {}
        warnings: list[str] = []
        for index, tool in enumerate(self.tools):
            function = tool.function
            if function.name not in self.names:
                continue
            try:
                arguments[function.name] = self._arguments(function)
            except NotEnforceable as error:
                param = f"tools.{index}.function.parameters"
                if function.strict:
                    raise _invalid(param, str(error)) from None
                warnings.append(f"{param} not enforced: {error}")
                node = arguments_node(self.dialect, _ANY_ARGUMENTS, _ANY_ARGUMENTS)
                arguments[function.name] = node
        rules = CallRules(
            arguments=arguments,
            is_required=_is_required(self.choice),
            is_parallel=self.is_parallel and not isinstance(self.choice, NamedTool),
        )
        return rules, warnings

    def _arguments(self, function: Function) -> Node:
        """What a function's arguments may be.

        Raises:
            NotEnforceable: the schema has a part that cannot be enforced.
        """
        assert self.dialect.tools is not None
        given = function.parameters
        if not given:
            return arguments_node(self.dialect, _NO_ARGUMENTS, _NO_ARGUMENTS)
        if "type" not in given and not {"$ref", "anyOf", "oneOf", "allOf"} & given.keys():
            given = {**given, "type": "object"}
        schema = _schema(given, is_listed=self.dialect.tools.family in ("pythonic", "xml"))
        if self.dialect.tools.family == "pythonic":
            _check_keywords(schema)
        return arguments_node(self.dialect, schema, given)


def allowed_names(
    dialect: Dialect, tools: list[FunctionTool], choice: ToolChoice | None
) -> frozenset[str]:
    """The functions that a reply may call.

    Raises:
        UnsupportedParameter: there are some, but this model has no calls that we know.
    """
    if not tools or choice == "none":
        return frozenset()
    if dialect.tools is None:
        raise UnsupportedParameter(
            "tools",
            "the model's chat template has no format of tool calls that is known; see "
            "--tool-call-parser",
        )
    return frozenset(chosen_names(choice) or (tool.function.name for tool in tools))


def _is_required(choice: ToolChoice | None) -> bool:
    if isinstance(choice, AllowedTools):
        return choice.allowed_tools.mode == "required"
    return choice == "required" or isinstance(choice, NamedTool)


def _schema(given: Mapping[str, Any], *, is_listed: bool) -> Mapping[str, Any]:
    """The schema of a function's arguments, in a form that is enforced whole. `is_listed`: the model
    writes them one by one, not as an object.

    Raises:
        NotEnforceable: it has no such form.
    """
    schema = enforceable(given)
    if not _is_object(given, given, {}):
        raise NotEnforceable("'type' at $ must be 'object'")
    if is_listed:
        if "type" not in schema:
            raise NotEnforceable("'type' at $ is needed for arguments that are written one by one")
        for name in ("minProperties", "maxProperties"):
            if name in schema:
                raise NotEnforceable(f"'{name}' at $ cannot be enforced of single arguments")
        for reference in _references(given):
            if not reference.startswith(("#/$defs/", "#/definitions/")):
                raise NotEnforceable(f"'$ref' {reference!r:.80} is not to $defs")
    return schema


def _check_keywords(schema: Mapping[str, Any]) -> None:
    for name in schema.get("properties", {}):
        if not _IDENTIFIER.fullmatch(name):
            raise NotEnforceable(f"{name!r:.80} at $.properties is no name of an argument")


def _is_object(schema: Any, root: Mapping[str, Any], known: dict[str, bool]) -> bool:
    """Whether nothing but objects fits `schema`; `known` is the answer for references, False for
    those on the way to it."""
    if not isinstance(schema, dict):
        return False
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return all(_is_object(branch, root, known) for branch in schema[name])
    if "$ref" in schema:
        reference = schema["$ref"]
        if reference not in known:
            known[reference] = False
            known[reference] = _is_object(target(reference, root), root, known)
        return known[reference]
    values = schema.get("enum", [schema.get("const")])
    return schema.get("type") == "object" or all(isinstance(value, dict) for value in values)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}': {message}", param=param, code="invalid_value")

"""A model's chat template: Jinja2 in a sandbox, with the conventions of Hugging Face.

Templates come with the model and are trusted as far as data: they run without access to Python's
internals, and what they print is capped. A request brings messages and options, never a template.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quire.config.errors import ModelError

_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class TextTooLong(ValueError):
    """A text that cannot fit, found before it was tokenized."""


class ChatTemplate:
    """One compiled template.

    `special_tokens` are the variables such as `bos_token` that the template may print.

    Raises:
        ModelError: the source is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            names = meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise ModelError(f"chat template: line {_line(error)}: {error.message}") from None
        self._special_tokens = dict(special_tokens)
        own = _RESERVED | environment.globals.keys() | self._special_tokens.keys()
        self.options = frozenset(names - own)
        """Names of the variables that a request may set."""
        self.takes_tools = "tools" in names
        """Whether it prints the functions that the model may call."""
        self.knows_developer = "developer" in source
        """Whether messages of the role developer have a form of their own."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_characters: int | None = None,
    ) -> str:
        """The prompt's text. `tools` are the functions that the model may call.

        Raises:
            ValueError: an option the template does not read, or the template refused the messages.
            TextTooLong: more than `max_characters`.
        """
        options = options or {}
        self.check_options(options)
        variables = {
            **self._special_tokens,
            **options,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(variables):
                length += len(piece)
                if max_characters is not None and length > max_characters:
                    raise TextTooLong(f"more than {max_characters} characters")
                pieces.append(piece)
        except TextTooLong:
            raise
        except TemplateError as error:
            raise ValueError(_one_line(error.message or type(error).__name__)) from None
        except Exception as error:  # noqa: BLE001 - a template may divide by zero
            raise ValueError(f"{type(error).__name__} in the chat template") from None
        return "".join(pieces)

    def check_options(self, options: Iterable[str]) -> None:
        """Raises ValueError for a name that the template does not read or a request may not set."""
        for name in options:
            if name not in self.options:
                known = ", ".join(sorted(self.options)) or "none"
                raise ValueError(f"the chat template has no option '{name}' (it has: {known})")


class _Generation(Extension):
    """`{% generation %}` marks what a training loss covers; for serving it prints its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _environment() -> Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _line(error: TemplateError) -> object:
    return getattr(error, "lineno", "?")


def _one_line(message: str) -> str:
    return " ".join(message.split())

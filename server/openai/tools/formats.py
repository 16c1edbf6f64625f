"""The ways in which models write tool calls: one row each, and how a row is found for a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Family = Literal["json", "named", "pythonic", "xml", "harmony"]


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One way of writing calls.

    A template is of this format when it holds every string of one of `seen`, and none of `unseen`.

    `before`, `call`, `between` and `after` spell what a grammar lets a model write: `before`, calls
    with `between` between them, `after`. In a `call`, NAME is the function's name, ARGUMENTS its
    arguments and INDEX a number; of the family xml, `argument` spells one of them by KEY and VALUE.
    `openings` and `closings` are the strings that a parser looks for around calls;
    `inner_marks` are others within a call. `is_bare`: calls may also begin the reply with no
    opening. `wants_short_ids`: the template takes
    ids of nine letters or digits. `counts_calls`: it takes ids of the form functions.NAME:INDEX.
    `tools_in_system`: it takes tools as a string in the system message.
    """

    name: str
    family: Family
    seen: Sequence[Sequence[str]]
    unseen: Sequence[str] = ()
    openings: tuple[str, ...] = ()
    closings: tuple[str, ...] = ()
    inner_marks: tuple[str, ...] = ()
    is_bare: bool = False
    before: str = ""
    call: str = '{"name": "NAME", "arguments": ARGUMENTS}'
    argument: str = ""
    between: str = ", "
    after: str = ""
    wants_short_ids: bool = False
    counts_calls: bool = False
    tools_in_system: bool = False

    def rewritten(self, rewrite: Callable[[str], str]) -> "ToolFormat":
        """The same with every string around calls as `rewrite` makes it."""

        def all_of(strings: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(map(rewrite, strings))

        return replace(
            self,
            openings=all_of(self.openings),
            closings=all_of(self.closings),
            inner_marks=all_of(self.inner_marks),
            before=rewrite(self.before),
            call=rewrite(self.call),
            argument=rewrite(self.argument),
            between=rewrite(self.between),
            after=rewrite(self.after),
        )

    def matches(self, template: str) -> bool:
        """Whether a chat template's source is of this format."""
        return any(all(mark in template for mark in marks) for marks in self.seen) and not any(
            mark in template for mark in self.unseen
        )


HARMONY = ToolFormat(
    name="harmony",
    family="harmony",
    seen=(("<|channel|>", "<|message|>"),),
    openings=("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"),
    closings=("<|end|>", "<|call|>", "<|return|>"),
)

FORMATS: tuple[ToolFormat, ...] = (
    HARMONY,
    ToolFormat(
        name="deepseek_v3",
        family="named",
        seen=(("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "```json"),),
        openings=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        closings=("<｜tool▁calls▁end｜>",),
        inner_marks=("<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
        before="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```<｜tool▁call▁end｜>",
        between="\n",
        after="<｜tool▁calls▁end｜>",
    ),
    ToolFormat(
        name="deepseek_v31",
        family="named",
        seen=(("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),),
        unseen=("```json",),
        openings=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        closings=("<｜tool▁calls▁end｜>",),
        inner_marks=("<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
        before="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>",
        between="",
        after="<｜tool▁calls▁end｜>",
    ),
    ToolFormat(
        name="kimi_k2",
        family="named",
        seen=(("<|tool_calls_section_begin|>",),),
        openings=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        closings=("<|tool_calls_section_end|>",),
        inner_marks=("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        before="<|tool_calls_section_begin|>",
        call="<|tool_call_begin|>functions.NAME:INDEX<|tool_call_argument_begin|>ARGUMENTS"
        "<|tool_call_end|>",
        between="",
        after="<|tool_calls_section_end|>",
        counts_calls=True,
    ),
    ToolFormat(
        name="mistral",
        family="named",
        seen=(("[TOOL_CALLS]", "[ARGS]"),),
        openings=("[TOOL_CALLS]",),
        inner_marks=("[ARGS]", "[CALL_ID]"),
        call="[TOOL_CALLS]NAME[ARGS]ARGUMENTS",
        between="",
        wants_short_ids=True,
    ),
    ToolFormat(
        name="mistral_list",
        family="json",
        seen=(("[TOOL_CALLS]",),),
        unseen=("[ARGS]",),
        openings=("[TOOL_CALLS]",),
        before="[TOOL_CALLS] [",
        after="]",
        wants_short_ids=True,
    ),
    ToolFormat(
        name="phi4_mini",
        family="json",
        seen=(("<|tool|>", "<|/tool|>"),),
        openings=("<|tool_call|>", "functools["),
        closings=("<|/tool_call|>",),
        before="<|tool_call|>[",
        after="]<|/tool_call|>",
        tools_in_system=True,
    ),
    ToolFormat(
        name="functools",
        family="json",
        seen=(("functools[",),),
        openings=("functools[", "<|tool_call|>"),
        closings=("<|/tool_call|>",),
        before="functools[",
        after="]",
    ),
    ToolFormat(
        name="granite",
        family="json",
        seen=(("<|tool_call|>",), ("<|start_of_role|>available_tools",)),
        unseen=("<tool_call>",),
        openings=("<|tool_call|>", "<tool_call>"),
        before="<|tool_call|>[",
        after="]",
    ),
    ToolFormat(
        name="qwen3_coder",
        family="xml",
        seen=(("<tool_call>", "<function="),),
        # The first is often left out.
        openings=("<tool_call>", "<function="),
        closings=("</tool_call>",),
        call="<tool_call>\n<function=NAME>\nARGUMENTS</function>\n</tool_call>",
        argument="<parameter=KEY>\nVALUE\n</parameter>\n",
        between="\n",
    ),
    ToolFormat(
        name="glm45",
        family="xml",
        seen=(("<tool_call>", "<arg_key>"),),
        unseen=("</arg_key><arg_value>", "<tool_sep>"),
        openings=("<tool_call>",),
        closings=("</tool_call>",),
        inner_marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        call="<tool_call>NAME\nARGUMENTS</tool_call>",
        argument="<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n",
        between="\n",
    ),
    ToolFormat(
        name="glm47",
        family="xml",
        seen=(("<tool_call>", "<arg_key>"),),
        unseen=("<tool_sep>",),
        openings=("<tool_call>",),
        closings=("</tool_call>",),
        inner_marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        call="<tool_call>NAMEARGUMENTS</tool_call>",
        argument="<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>",
        between="",
    ),
    ToolFormat(
        name="minimax_m2",
        family="xml",
        seen=(("<minimax:tool_call>", "<invoke name="),),
        openings=("<minimax:tool_call>",),
        closings=("</minimax:tool_call>",),
        before="<minimax:tool_call>\n",
        call='<invoke name="NAME">\nARGUMENTS</invoke>\n',
        argument='<parameter name="KEY">VALUE</parameter>\n',
        between="",
        after="</minimax:tool_call>",
    ),
    ToolFormat(
        name="hermes",
        family="json",
        seen=(("<tool_call>",),),
        unseen=("<function=", "<arg_key>"),
        openings=("<tool_call>",),
        closings=("</tool_call>",),
        call='<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>',
        between="\n",
    ),
    ToolFormat(
        name="pythonic",
        family="pythonic",
        seen=(("<|python_start|>",), ("[func_name1(",)),
        unseen=('"parameters": dictionary',),
        openings=("<|python_start|>",),
        closings=("<|python_end|>",),
        is_bare=True,
        before="[",
        call="NAME(ARGUMENTS)",
        after="]",
    ),
    ToolFormat(
        name="llama3_json",
        family="json",
        seen=(
            ("<|python_tag|>",),
            ("<|start_header_id|>", '"parameters": '),
            ("<|header_start|>", '"parameters": '),
        ),
        openings=("<|python_tag|>",),
        is_bare=True,
        call='{"name": "NAME", "parameters": ARGUMENTS}',
        between="; ",
    ),
)
"""In the order in which they are tried."""


def format_named(name: str) -> ToolFormat:
    """The row called `name`."""
    return next(row for row in FORMATS if row.name == name)


def format_of(template: str) -> ToolFormat | None:
    """The first row that a chat template's source is of."""
    return next((row for row in FORMATS if row.matches(template)), None)

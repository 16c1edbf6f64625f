"""Every format's parser: what it finds, however the text was cut, and what it leaves as content."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_models import call_text
from tool_replies import NAMES, Said, cut, dialect_of, read

from quire.pipelines.text.detokenizer import CONTROL_MARK
from quire.server.openai.tools.formats import FORMATS, ToolFormat, format_named


def python(value: Any) -> str:
    """A value as Python writes it."""
    return repr(value)


def written(format_: ToolFormat, calls: Sequence[tuple[str, Any]]) -> str:
    """Calls as a model of this format writes them."""
    if format_.name == "harmony":
        return "<|start|>assistant".join(
            f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
            f"{json.dumps(arguments, ensure_ascii=False)}<|call|>"
            for name, arguments in calls
        )
    dump = functools.partial(json.dumps, ensure_ascii=False)
    texts = [
        call_text(format_, name, arguments, dump=dump, python=python) for name, arguments in calls
    ]
    return format_.before + format_.between.join(texts) + format_.after


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=CONTROL_MARK), max_size=12
) | st.sampled_from(
    [
        '"',
        "\\",
        '{"a": [}',
        "</tool_call>",
        "\n\t",
        "日本 🙂",
        "'",
        "'''",
        "<|call|",
        "]}",
        "\\u0041",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(st.sampled_from(["a", "city", "x_1"]), values, max_size=3)
call_lists = st.lists(st.tuples(st.sampled_from(sorted(NAMES)), arguments), min_size=1, max_size=3)
borders = st.lists(st.integers(0, 400), max_size=12)
EVERY = pytest.mark.parametrize("name", [row.name for row in FORMATS])


def usable(name: str, calls: Sequence[tuple[str, Any]]) -> bool:
    """Where harmony's markers are text, broken arguments end at one."""
    return name != "harmony" or "<|" not in json.dumps(calls)


def typed(name: str, calls: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Between tags values are of the types of PROPERTIES."""
    if format_named(name).family != "xml":
        return calls
    made: dict[str, Callable[[Any], Any]] = {
        "a": lambda value: value if isinstance(value, str) else json.dumps(value),
        "city": lambda value: [value],
        "x_1": lambda value: value if isinstance(value, str) and value.strip() != "null" else None,
    }
    return [
        (called, {key: made[key](value) for key, value in given.items()}) for called, given in calls
    ]


@EVERY
@settings(max_examples=60, deadline=None)
@given(calls=call_lists, borders=borders, hidden=st.booleans())
def test_calls_are_read_however_they_are_cut(
    name: str, calls: list[tuple[str, Any]], borders: list[int], hidden: bool
) -> None:
    if not usable(name, calls):
        return
    calls = typed(name, calls)
    dialect = dialect_of(name, hidden=hidden)
    text = dialect.shown(written(format_named(name), calls))

    whole = read(dialect, [text])

    assert [(called, json.loads(given)) for called, given in whole.calls] == calls
    assert whole.content == "" and not whole.is_open
    assert read(dialect, cut(text, borders)) == whole
    assert read(dialect, text) == whole


@EVERY
@settings(max_examples=60, deadline=None)
@given(calls=call_lists, borders=borders, end=st.integers(0, 300), think=st.booleans())
def test_cut_replies_keep_what_there_was(
    name: str, calls: list[tuple[str, Any]], borders: list[int], end: int, think: bool
) -> None:
    """At max_tokens: the calls that are complete, and the arguments so far of the next."""
    dialect = dialect_of(name, think=think and name != "harmony")
    if not usable(name, calls):
        return
    full = written(format_named(name), typed(name, calls))
    text = full[:end]
    if name == "harmony" and text.rfind("<") > text.rfind(">"):
        # Its markers are control tokens: there is no half of one.
        text = text[: text.rfind("<")]

    said = read(dialect, cut(text, borders))

    assert said == read(dialect, [text])
    whole = read(dialect, [full])
    assert len(said.calls) <= len(whole.calls)
    for (called, part), (expected, complete) in zip(said.calls, whole.calls, strict=False):
        assert called == expected and complete.startswith(part)
    for index, call in enumerate(said.calls[:-1]):
        assert call == whole.calls[index]
    if said.calls and not said.is_open:
        assert said.calls[-1] == whole.calls[len(said.calls) - 1]


soups = st.lists(
    st.sampled_from(
        [mark for row in FORMATS for mark in (*row.openings, *row.closings, *row.inner_marks)]
        + ['{"name": "f", "arguments": ', '{"name": "g", ', '{"a": "', "f(a=", "[", "]", "}", ")"]
        + ["<function=f>", '<invoke name="f">', "<parameter=a>", "</parameter>", "</function>"]
        + ["{", '"', "'", ",", ":", "=", "f", "to=functions.f", "<think>", "</think>", " ", "\n"]
        + ["final", "analysis", "é🙂", "\\", "1e5", "None", "json", '"function": {', "(", "```"]
    ),
    max_size=25,
).map("".join)


@EVERY
@settings(max_examples=100, deadline=None)
@given(text=soups | texts, borders=borders, think=st.booleans(), hidden=st.booleans())
def test_no_text_is_an_error_and_cuts_change_nothing(
    name: str, text: str, borders: list[int], think: bool, hidden: bool
) -> None:
    dialect = dialect_of(name, hidden=hidden, think=think and name != "harmony")
    text = dialect.shown(text)

    whole = read(dialect, [text])

    assert CONTROL_MARK not in whole.content + whole.reasoning
    assert read(dialect, cut(text, borders)) == whole
    assert read(dialect, text) == whole
    assert {called for called, _ in whole.calls} <= NAMES


@EVERY
@settings(max_examples=30, deadline=None)
@given(
    text=st.text(st.characters(exclude_characters="<[{`", exclude_categories=["Cs"])),
    borders=borders,
)
def test_plain_text_is_content(name: str, text: str, borders: list[int]) -> None:
    if name == "harmony":
        said = read(dialect_of(name), cut(text, borders))
        assert said.content.split() == text.split()
        return
    assert read(dialect_of(name), cut(text, borders)) == Said(content=text)


NOT_CALLS = {
    "hermes": '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "Bob", "age": 5}',
    "pythonic": "[1, 2] and [other(a=1)]",
    "mistral": "[TOOL_CALLS]other[ARGS]{}",
    "mistral_list": '[TOOL_CALLS] [{"name": "other"}]',
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>other<｜tool▁sep｜>{}",
    "granite": '<|tool_call|>[{"nam": "f"}]',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.other:0",
    "qwen3_coder": "<tool_call>\n<function=other>\n</function>\n</tool_call>",
    "glm45": "<tool_call>other\n</tool_call>",
    "glm47": "<tool_call>other</tool_call>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="other">\n</invoke>\n</minimax:tool_call>',
    "phi4_mini": "functools[1]",
    "functools": "functools[] and functools",
}


@pytest.mark.parametrize(("name", "text"), NOT_CALLS.items())
def test_what_only_looks_like_a_call_is_content(name: str, text: str) -> None:
    assert read(dialect_of(name), [f"{text} end"]) == Said(content=f"{text} end")
    dialect = dialect_of(name, hidden=True)
    hidden = read(dialect, [dialect.shown(text)])
    assert not hidden.calls
    for mark in dialect.specials:
        text = text.replace(mark, "")
    assert hidden.content == text
    # The same spelling in the model's own words marks nothing.
    assert read(dialect, ["say " + NOT_CALLS[name]]) == Said(content="say " + NOT_CALLS[name])


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        (
            "hermes",
            'Let me see.\n<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>\nDone',
            "Let me see.\nDone",
            [("f", '{"a": 1}')],
        ),
        ("hermes", '<tool_call>{"name": "no-args"}</tool_call>', "", [("no-args", "{}")]),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            "",
            [("f", '{"a": 1}')],
        ),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {"a": 1}}}</tool_call>x',
            "}x",
            [("f", '{"a": 1}')],
        ),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {"a": </tool_call>',
            "",
            [("f", '{"a": ')],
        ),
        (
            "llama3_json",
            '<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "f", "parameters": {}}',
            "",
            [("f", '{"a": 1}'), ("f", "{}")],
        ),
        (
            "llama3_json",
            '{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}',
            "",
            [("f", '{"a": 1}')],
        ),
        (
            "pythonic",
            "<|python_start|>[f(a=True, city=\"it's\", x_1={'k': (1, None)}), no-args()]<|python_end|>",
            "",
            [("f", '{"a": true, "city": "it\'s", "x_1": {"k": [1, null]}}'), ("no-args", "{}")],
        ),
        ("pythonic", r"[f(a='\x41\u00e9\n\'')]", "", [("f", '{"a": "Aé\\n\'"}')]),
        (
            "mistral",
            '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": "]"}[TOOL_CALLS]f[ARGS]{}',
            "",
            [("f", '{"a": "]"}'), ("f", "{}")],
        ),
        (
            "harmony",
            "<|channel|>commentary<|message|>Let me see.<|end|>"
            + "<|start|>assistant to=functions.f"
            + '<|channel|>commentary json<|message|>{"a": 1}<|call|>',
            "Let me see.",
            [("f", '{"a": 1}')],
        ),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:12"
            + '<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|><|tool_call_begin|>functions.no-args:1'
            + "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
            "",
            [("f", '{"a": 1}'), ("no-args", "{}")],
        ),
        (
            "qwen3_coder",
            "Let me see.\n<tool_call><function=f><parameter=a>x</parameter></function>"
            + "<function=no-args></function></tool_call>\nDone",
            "Let me see.\nDone",
            [("f", '{"a": "x"}'), ("no-args", "{}")],
        ),
        (
            "qwen3_coder",
            "Let me see.\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>"
            + "\n<function=no-args>\n</function>\nDone <function=other>",
            "Let me see.\nDone <function=other>",
            [("f", '{"a": "x"}'), ("no-args", "{}")],
        ),
        (
            "glm45",
            "<tool_call>f<arg_key>a</arg_key><arg_value>x</arg_value></tool_call>",
            "",
            [("f", '{"a": "x"}')],
        ),
        ("phi4_mini", 'functools[{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
        ("granite", '<tool_call>[{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
    ],
)
def test_variants_that_models_write(
    name: str, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    said = read(dialect_of(name), [text])

    assert (said.content, said.calls, said.is_open) == (content, calls, False)


@pytest.mark.parametrize("count", [20_000])
@pytest.mark.parametrize(
    ("name", "start", "piece"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": ', '{"a": ['),
        ("hermes", "", "<tool_call><tool"),
        ("hermes", "", '<tool_call>{"function": {'),
        ("pythonic", "[f(a=", "["),
        ("pythonic", "[f(a=", "9"),
        ("llama3_json", '{"name": "', "\\u0041"),
        ("mistral", "[TOOL_CALLS]", "f"),
        ("harmony", "<|channel|>", "<|chan"),
    ],
)
def test_long_and_deep_replies_are_read_to_the_end(
    name: str, start: str, piece: str, count: int
) -> None:
    read(dialect_of(name), [start + piece * count])

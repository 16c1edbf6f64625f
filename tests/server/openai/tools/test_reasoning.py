"""Reasoning apart from content, and control tokens apart from their spelling."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_replies import NAMES, Said, cut, dialect_of, read

from quire.pipelines.text.detokenizer import CONTROL_MARK
from quire.server.openai.tools.dialect import Dialect
from quire.server.openai.tools.plan import ReplyPlan
from quire.server.openai.tools.reasoning_meter import ReasoningMeter
from quire.server.openai.tools.thinking import THINK_TAGS


@pytest.mark.parametrize(
    ("opening", "text", "reasoning", "content"),
    [
        ("before", "<think>\nwhy <b>\n</think>\n\nbecause ", "why <b>", "because "),
        ("before", "because </think> no", "", "because </think> no"),
        ("inside", "why\n\n</think>\nbecause", "why", "because"),
        ("inside", "why</thin", "why</thin", ""),
        ("before", " <thi", "", " <thi"),
    ],
)
def test_reasoning_between_tags(opening: Any, text: str, reasoning: str, content: str) -> None:
    dialect = Dialect(think=THINK_TAGS[0])
    for chunks in ([text], list(text), cut(text, [3, 7, 9])):
        said = read(dialect, chunks, opening)
        assert (said.reasoning, said.content) == (reasoning, content)


def test_harmonys_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>Simple.<|end|><|start|>assistant<|channel|>analysis"
        "<|message|>Yes.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"
    )

    assert read(dialect_of("harmony"), text) == Said(content="4", reasoning="Simple.\nYes.")
    assert read(dialect_of("harmony"), "the rest of it<|end|>").content == "the rest of it"


def test_control_tokens_and_their_spelling_are_told_apart() -> None:
    dialect = dialect_of("harmony", hidden=True)
    start = dialect.shown("<|channel|>final<|message|>")
    call = dialect.shown("<|channel|>commentary to=functions.f<|message|>")

    assert read(dialect, f"{start}write <|end|> there").content == "write <|end|> there"
    arguments = '{"a": "<|end|><|call|>"}'
    assert read(dialect, call + arguments) == Said(calls=[("f", arguments)])


def test_a_noncharacter_of_the_models_own_is_text() -> None:
    text = f'a{CONTROL_MARK}<tool_call>{{"name": "f", "arguments": {{"a": "{CONTROL_MARK}"}}}}'

    said = read(dialect_of("hermes"), text)

    assert said == Said(content=f"a{CONTROL_MARK}", calls=[("f", f'{{"a": "{CONTROL_MARK}"}}')])


def test_json_that_is_no_call_is_not_held_back() -> None:
    parser = dialect_of("llama3_json").parser(NAMES, "after")
    assert parser is not None

    assert parser.feed('{"rows": [1') == [("content", '{"rows": [1')]


def test_reasoning_can_be_left_out() -> None:
    parser = Dialect(think=THINK_TAGS[0]).parser(NAMES, "before", shows_reasoning=False)
    assert parser is not None

    assert parser.feed("<think>a</think>b") + parser.finish() == [("content", "b")]


def metered(meter: ReasoningMeter, text: str, tokens: list[int], places: list[int]) -> list[int]:
    """The count after each piece of `text`, cut at `places`; `tokens` are where tokens begin."""
    counts = []
    for start, end in itertools.pairwise([0, *sorted(min(p, len(text)) for p in places)]):
        offsets = [token for token in tokens if start <= token < end]
        meter.feed(text[start:end], offsets, is_last=False)
        counts.append(meter.num_tokens)
    start = min(max(places, default=0), len(text))
    meter.feed(text[start:], [token for token in tokens if token >= start], is_last=True)
    return [*counts, meter.num_tokens]


numbers = st.lists(st.integers(0, 40), max_size=10)


@settings(max_examples=200, deadline=None)
@given(
    reasoning=st.text("a</think>\n ", max_size=12),
    answer=st.text("b</think>\n", max_size=8),
    opening=st.sampled_from(["before", "inside", "after"]),
    ends=st.booleans(),
    hidden=st.booleans(),
    tokens=numbers,
    places=numbers,
)
def test_tokens_of_reasoning_are_counted_however_they_came(
    reasoning: str,
    answer: str,
    opening: Any,
    ends: bool,
    hidden: bool,
    tokens: list[int],
    places: list[int],
) -> None:
    marks = {"<think>": 1, "</think>": 2} if hidden else {}
    dialect = Dialect(think=THINK_TAGS[0], specials=marks)
    shown = dialect.shown
    start = "" if opening == "inside" else shown("<think>")
    closing = shown("</think>")
    reasoning = reasoning.replace("</think>", "")
    text = start + reasoning + (closing + answer if ends else "")
    end = text.find(closing, len(start))
    within = range(len(start), len(text) + 99 if end < 0 else end)
    plan = ReplyPlan(dialect=dialect, opening=opening)
    tokens = sorted(tokens)

    counts = metered(plan.reasoning_meter(), text, tokens, places)

    expected = 0 if opening == "after" else sum(token in within for token in tokens)
    assert counts[-1] == expected
    assert counts == sorted(counts)


def test_harmonys_reasoning_is_counted() -> None:
    pieces = ["<|channel|>analysis<|message|>", "Simple.", "<|end|><|start|>assistant<|channel|>"]
    pieces += ["analysis<|message|>", "Yes", "<|end|><|start|>assistant<|channel|>final<|message|>"]
    pieces += ["4<|return|>"]
    text = "".join(pieces)
    dialect = dialect_of("harmony")

    plan = ReplyPlan(dialect=dialect, opening="before")

    counts = metered(plan.reasoning_meter(), text, list(range(len(text))), list(range(len(text))))
    assert counts[-1] == len("Simple.Yes")
    assert counts == sorted(counts)

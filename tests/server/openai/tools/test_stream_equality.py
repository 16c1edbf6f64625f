"""Of any mixture of text, reasoning and calls, whole and broken, a stream folds to the whole reply."""

from collections.abc import Callable

import httpx2
import pytest
from folding import BORDERS, FUZZ, Json, optional, replies, say
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_models import ARGUMENTS, ASK, TEMPLATE, WEATHER, Model, marks_of, written

from quire.server.openai.tools.formats import FORMATS

THINK = TEMPLATE + "{% if thinking %}<think>{% endif %}{# </think> #}"


@pytest.mark.parametrize("num", [8, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [row.name for row in FORMATS])
def test_any_pieces_of_calls_and_reasoning(
    make: Callable[..., Model], http: httpx2.Client, name: str, num: int
) -> None:
    model = make(name, marks_of(name), THINK)
    call = written(name, ARGUMENTS)
    pieces = [
        call,
        call[: len(call) // 2],
        "<think>",
        "</think>",
        "Hm. ",
        "\n",
        "{",
        *marks_of(name),
    ]
    texts = st.lists(st.sampled_from(pieces), max_size=5).map("".join)
    switches = optional(
        include_reasoning=st.booleans(),
        parallel_tool_calls=st.booleans(),
        tool_choice=st.sampled_from(["auto", "none", "required"]),
        reasoning_effort=st.sampled_from(["none", "high"]),
        logprobs=st.booleans(),
        return_token_ids=st.booleans(),
        max_tokens=st.integers(1, 200),
        stop=st.sampled_from(["ri}", "Hm", "<", '"']),
        n=st.integers(1, 2),
    )

    @settings(FUZZ, max_examples=num)
    @given(body=switches, said=st.lists(texts, min_size=1, max_size=2), sizes=BORDERS)
    def check(body: Json, said: list[str], sizes: list[int]) -> None:
        rows = [model.tokenizer.encode(text, add_special_tokens=False) for text in said]
        say(model.live, rows, model.eos, sizes)
        asked = {"messages": ASK, "tools": [WEATHER], "max_tokens": 300, **body}
        whole, stream = replies(http, "chat/completions", asked)
        assert "error" not in whole
        assert stream == whole

    check()

"""For any fields and any borders between chunks, a stream folds to the whole reply, field by field."""

from typing import Any

import httpx2
import pytest
from folding import BORDERS, FUZZ, Json, optional, replies, say
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_models import ASK, WEATHER, FakeCompiler

TEXTS = ["naïve 🙂 日本語, the lazy dog.", "Hello world!", "🦖🦖", "one two three four", " "]
STOPS = ["lazy", "🙂", "n", " ", "zzz", "world!!", "\ufffd", "two three", "🦖🦖"]
shared = {
    "n": st.integers(1, 3),
    "stop": st.lists(st.sampled_from(STOPS), max_size=2),
    "stop_token_ids": st.lists(st.integers(0, 60), max_size=2),
    "include_stop_str_in_output": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "ignore_eos": st.booleans(),
    "min_tokens": st.integers(0, 3),
    "return_token_ids": st.booleans(),
    "truncate_prompt_tokens": st.integers(1, 3),
    "seed": st.integers(0, 9),
}
completions = st.builds(
    lambda fields, more: {**fields, **more},
    optional(
        **shared, logprobs=st.integers(0, 3), echo=st.booleans(), add_special_tokens=st.booleans()
    ),
    st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["Hello 🙂", [5, 6, 7], ["one", "dog 🦖"], [[5], [60, 61]]]),
            "max_tokens": st.integers(3, 25),
        }
    ),
)
chats = st.builds(
    lambda fields, more: {**fields, **more},
    optional(
        **shared,
        continue_final_message=st.just(False),
        max_completion_tokens=st.integers(3, 25),
        tools=st.just([WEATHER]),
        response_format=st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    ),
    st.sampled_from([{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}]),
)


@pytest.mark.parametrize("num", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("route", "bodies"), [("completions", completions), ("chat/completions", chats)]
)
def test_any_tokens(
    live: Any, http: httpx2.Client, route: str, bodies: st.SearchStrategy[Json], num: int
) -> None:
    """Of texts, and of any ids: control tokens and parts of characters."""
    live.app.state.grammars = FakeCompiler()
    tokenizer = live.tokenizer
    texts = st.sampled_from(TEXTS).map(lambda text: tokenizer.encode(text, False))
    rows = st.lists(
        texts | st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12),
        min_size=1,
        max_size=3,
    )
    statuses = []

    @settings(FUZZ, max_examples=num)
    @given(body=bodies, rows=rows, sizes=BORDERS)
    def check(body: Json, rows: list[list[int]], sizes: list[int]) -> None:
        say(live, rows, tokenizer.eos_token_id, sizes)
        asked = body if route == "completions" else {"messages": ASK, **body}
        whole, stream = replies(http, route, asked)
        statuses.append("error" not in whole)
        assert stream == whole

    check()
    assert sum(statuses) > len(statuses) / 2

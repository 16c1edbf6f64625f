"""`suffix` of completions: the prompt that the engine gets, and what cannot be asked."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from tool_models import TEMPLATE, Model

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@pytest.fixture
def make(live: Any) -> Iterator[Callable[..., Model]]:
    state = live.app.state
    before = state.served, state.grammars, state.settings
    yield lambda marks: Model(live, "auto", list(marks), TEMPLATE)
    state.served, state.grammars, state.settings = before


def complete(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    return http.post("/v1/completions", json={"prompt": "ab", "suffix": "yz", **fields})


def test_the_middle_is_asked_for(make: Callable[..., Model], http: httpx2.Client) -> None:
    model = make(QWEN)
    model.says("cd")

    reply = complete(http)

    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["text"] == "cd"
    assert model.prompt == "<|fim_prefix|>ab<|fim_suffix|>yz<|fim_middle|>"
    complete(http, prompt="a<|fim_middle|>b", suffix="<|im_end|>")
    prompt = model.live.engine.streams[-1].context.tokens.prompt.tolist()
    control = [id for id in prompt if id in model.tokenizer.special_token_ids]
    assert control == [model.tokenizer.special_tokens[mark] for mark in QWEN]
    assert model.prompt == "<|fim_prefix|>a<|fim_middle|>b<|fim_suffix|><|im_end|><|fim_middle|>"


def test_several_prompts_have_one_suffix(make: Callable[..., Model], http: httpx2.Client) -> None:
    model = make(QWEN)
    model.says("cd")

    reply = complete(http, prompt=["ab", "x"], n=2)

    assert len(reply.json()["choices"]) == 4
    assert model.prompt == "<|fim_prefix|>x<|fim_suffix|>yz<|fim_middle|>"


@pytest.mark.parametrize("suffix", ["", None])
def test_without_a_suffix_nothing_changes(
    make: Callable[..., Model], http: httpx2.Client, suffix: str | None
) -> None:
    model = make(())
    model.says("cd")

    assert complete(http, suffix=suffix, echo=True).json()["choices"][0]["text"] == "abcd"
    assert model.prompt == "ab"


def test_what_the_model_writes_after_the_middle_ends_it(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    model = make((*QWEN, "<|file_separator|>"))
    model.says("cd<|file_separator|>ef")

    choice = complete(http).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("cd", "stop")
    assert choice["stop_reason"] == model.tokenizer.special_tokens["<|file_separator|>"]
    going_on = complete(http, ignore_eos=True, max_tokens=6).json()["choices"][0]
    assert going_on["text"].startswith("cdef")
    assert complete(http, suffix=None).json()["choices"][0]["text"] == "cdef"


@pytest.mark.parametrize(
    "fields",
    [{"echo": True}, {"prompt": [5]}, {"prompt": [[5], [6]]}, {"truncate_prompt_tokens": 5}],
)
def test_what_a_suffix_does_not_go_with(
    make: Callable[..., Model], http: httpx2.Client, fields: dict[str, Any]
) -> None:
    make(QWEN).says("cd")

    reply = complete(http, **fields)

    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "suffix"

"""The official client reads replies and streams; replies of several prompts."""

from typing import Any

import httpx2
import openai

from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.openai.logprobs import LOWEST, chat_logprobs

TEXT = "naïve 🙂 日本語, the lazy dog. Hello world!"


def test_impossible_tokens_have_a_finite_logprob(tokenizer: TextTokenizer) -> None:
    values = (float("-inf"), float("nan"), -1.0)
    reply = chat_logprobs(tokenizer, [5, 6, 7], [LogProbabilities(value, {}) for value in values])

    assert [entry["logprob"] for entry in reply["content"]] == [LOWEST, LOWEST, -1]


def test_several_prompts_number_their_choices_prompt_by_prompt(
    live: Any, http: httpx2.Client
) -> None:
    rows = {prompt: live.says(f"{prompt} said") for prompt in ("one", "two")}
    live.engine.script = lambda context: rows[live.tokenizer.decode(context.tokens.prompt.tolist())]

    reply = http.post(
        "/v1/completions", json={"prompt": ["one", "two"], "n": 2, "echo": True}
    ).json()

    assert [choice["text"] for choice in reply["choices"]] == [
        "oneone said",
        "oneone said",
        "twotwo said",
        "twotwo said",
    ]
    ids = {stream.context.request_id for stream in live.engine.streams}
    assert len(ids) == 4
    prompts = [stream.context.tokens.prompt_length for stream in live.engine.streams]
    assert reply["usage"]["prompt_tokens"] == prompts[0] + prompts[2]


def test_sdk_reads_chat_streams(live: Any, sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model="tiny",
        messages=[{"role": "user", "content": "Hello"}],
        n=2,
        logprobs=True,
        top_logprobs=2,
        stream_options={"include_usage": True},
    ) as stream:
        final = stream.get_final_completion()

    assert [choice.message.content for choice in final.choices] == [
        "Hello world, how are you today?"
    ] * 2
    assert {choice.message.role for choice in final.choices} == {"assistant"}
    assert final.usage is not None
    assert final.usage.completion_tokens == 20
    assert final.choices[0].logprobs is not None
    assert len(final.choices[0].logprobs.content or []) == 10


def test_sdk_reads_whole_replies_and_completions(live: Any, sdk: openai.OpenAI) -> None:
    chat = sdk.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=3
    )
    pieces = [
        chunk.choices[0].text
        for chunk in sdk.completions.create(model="tiny", prompt="Hello", stream=True)
    ]

    assert chat.choices[0].finish_reason == "length"
    assert chat.usage is not None and chat.usage.completion_tokens == 3
    assert "".join(pieces) == "Hello world, how are you today?"
    assert chat._request_id is not None

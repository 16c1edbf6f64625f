"""A stream and a whole reply say the same, in the form that clients rely on."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import httpx2
import orjson
import pytest

ENDPOINTS = ["chat/completions", "completions"]
TEXT = "naïve 🙂 日本語, the lazy dog. Hello world!"


def body_for(endpoint: str, **fields: Any) -> dict[str, Any]:
    if endpoint == "completions":
        return {"prompt": "Hello", "max_tokens": 100, **fields}
    return {"messages": [{"role": "user", "content": "Hello"}], **fields}


def events(reply: httpx2.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end in [DONE]."""
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in reply.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [orjson.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def choices(chunks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for chunk in chunks:
        assert len(chunk["choices"]) <= 1
        yield from chunk["choices"]


def assembled(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """One choice of a stream, put together as a client does."""
    result: dict[str, Any] = {"text": "", "logprobs": [], "finish_reason": None}
    for choice in choices(chunks):
        if choice["index"] != index:
            continue
        assert result["finish_reason"] is None
        result["text"] += choice.get("text", choice.get("delta", {}).get("content", ""))
        if choice["logprobs"] is not None:
            result["logprobs"].append(choice["logprobs"])
        result["finish_reason"] = choice["finish_reason"]
        result["stop_reason"] = choice.get("stop_reason")
    return result


def text_of(choice: dict[str, Any]) -> str:
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("fields", "expected", "finish", "stop"),
    [
        ({}, TEXT, "stop", None),
        ({"max_tokens": 9}, None, "length", None),
        ({"stop": "lazy dog"}, "naïve 🙂 日本語, the ", "stop", "lazy dog"),
        ({"stop": ["zzz", "🙂"]}, "naïve ", "stop", "🙂"),
        ({"stop": "n"}, "", "stop", "n"),
        (
            {"stop": "lazy dog", "include_stop_str_in_output": True},
            "naïve 🙂 日本語, the lazy dog",
            "stop",
            "lazy dog",
        ),
        ({"include_stop_str_in_output": True}, TEXT, "stop", None),
        (
            {"include_stop_str_in_output": True, "skip_special_tokens": False},
            f"{TEXT}<|im_end|>",
            "stop",
            None,
        ),
        ({"skip_special_tokens": False}, TEXT, "stop", None),
        ({"stop": "world!!"}, TEXT, "stop", None),
        ({"stop_token_ids": [300], "stop": []}, TEXT, "stop", None),
    ],
)
def test_stream_equals_whole_reply(
    live: Any,
    http: httpx2.Client,
    endpoint: str,
    chunk_size: int,
    fields: dict[str, Any],
    expected: str | None,
    finish: str,
    stop: str | None,
) -> None:
    live.says(TEXT)
    live.engine.chunk_size = chunk_size
    body = body_for(endpoint, **fields)

    whole = http.post(f"/v1/{endpoint}", json=body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events(http.post(f"/v1/{endpoint}", json={**body, **options}))

    choice, stream = whole["choices"][0], assembled(chunks)
    assert stream["text"] == text_of(choice)
    assert expected is None or text_of(choice) == expected
    assert (choice["finish_reason"], choice["stop_reason"]) == (finish, stop)
    assert (stream["finish_reason"], stream["stop_reason"]) == (finish, stop)
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_chunk_has_one_id_time_model_and_fingerprint(
    live: Any, http: httpx2.Client, endpoint: str
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, "model": "tiny-alias"}
    chunks = events(http.post(f"/v1/{endpoint}", json=body_for(endpoint, n=2, **options)))

    prefix = "cmpl-" if endpoint == "completions" else "chatcmpl-"
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert chunks[0]["id"].startswith(prefix)
    assert len({chunk["created"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {"tiny-alias"}
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp_test"}
    kind = "text_completion" if endpoint == "completions" else "chat.completion.chunk"
    assert {chunk["object"] for chunk in chunks} == {kind}
    assert all("error" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"] == []
    assert all("usage" not in chunk for chunk in chunks[:-1])


def test_chat_stream_gives_the_role_once_and_in_order(live: Any, http: httpx2.Client) -> None:
    body = body_for("chat/completions", n=3, stream=True)
    found = list(choices(events(http.post("/v1/chat/completions", json=body))))

    assert [(choice["index"], choice["delta"]) for choice in found[:3]] == [
        (index, {"role": "assistant", "content": ""}) for index in range(3)
    ]
    assert all(choice["finish_reason"] is None for choice in found[:3])
    assert not any("role" in choice["delta"] for choice in found[3:])
    ends = [choice for choice in found if choice["finish_reason"] is not None]
    assert sorted(choice["index"] for choice in ends) == [0, 1, 2]
    assert all(choice["delta"] == {} for choice in ends)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_held_back_text_sends_no_empty_chunks(
    live: Any, http: httpx2.Client, endpoint: str
) -> None:
    live.says("🦖🦖")
    chunks = events(http.post(f"/v1/{endpoint}", json=body_for(endpoint, stream=True)))

    texts = [
        choice.get("text", choice.get("delta", {}).get("content"))
        for choice in choices(chunks)
        if choice["finish_reason"] is None and "role" not in choice.get("delta", {})
    ]
    assert texts == ["🦖", "🦖"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("size", [1, 4])
def test_logprobs_cover_every_token_even_when_text_is_held_back(
    live: Any, http: httpx2.Client, endpoint: str, size: int
) -> None:
    tokens = live.says("a 🦖 naïve")
    live.engine.chunk_size = size
    asked = {"logprobs": 3} if endpoint == "completions" else {"logprobs": True, "top_logprobs": 3}
    body = body_for(endpoint, stop="zebra", **asked)

    whole = http.post(f"/v1/{endpoint}", json=body).json()["choices"][0]["logprobs"]
    parts = assembled(events(http.post(f"/v1/{endpoint}", json={**body, "stream": True})))

    pieces = parts["logprobs"]
    merged = {
        key: [item for piece in pieces for item in piece[key] or []] for key in whole if whole[key]
    }
    assert merged == {key: value for key, value in whole.items() if value}
    entries = whole["tokens"] if endpoint == "completions" else whole["content"]
    assert len(entries) == len(tokens)


def test_chat_logprobs_carry_bytes_of_split_characters(live: Any, http: httpx2.Client) -> None:
    live.says("🦖")
    body = body_for("chat/completions", logprobs=True, top_logprobs=2)

    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]

    content = choice["logprobs"]["content"]
    shown = [entry for entry in content if entry["token"] != "<|im_end|>"]
    assert bytes(byte for entry in shown for byte in entry["bytes"]).decode() == "🦖"
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"] == -0.25


def test_completion_logprobs_have_offsets_into_the_text(live: Any, http: httpx2.Client) -> None:
    live.says(" Hello world, how are you")
    choice = http.post("/v1/completions", json=body_for("completions", logprobs=0)).json()[
        "choices"
    ][0]

    logprobs, text = choice["logprobs"], choice["text"]
    for token, offset in zip(logprobs["tokens"][:-1], logprobs["text_offset"][:-1], strict=True):
        assert text[offset:].startswith(token)
    assert logprobs["tokens"][-1] == "<|im_end|>"
    assert all(
        list(top) == [token]
        for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_continuous_usage_is_on_every_chunk_and_grows(
    live: Any, http: httpx2.Client, endpoint: str
) -> None:
    live.engine.cached_tokens = 2
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = body_for(endpoint, stream=True, stream_options=options)

    usages = [chunk["usage"] for chunk in events(http.post(f"/v1/{endpoint}", json=body))]

    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert all(u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"] for u in usages)
    assert usages[-1]["prompt_tokens_details"] == {"cached_tokens": 2}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_n_choices_interleave_and_each_is_whole(
    live: Any, http: httpx2.Client, endpoint: str
) -> None:
    words = ["one two", "three four five six seven", "eight"]
    rows = [live.says(word) for word in words]
    live.engine.script = lambda context: rows[context.choice]

    body = body_for(endpoint, n=3, temperature=0)
    whole = http.post(f"/v1/{endpoint}", json=body).json()
    chunks = events(http.post(f"/v1/{endpoint}", json={**body, "stream": True}))

    assert [text_of(choice) for choice in whole["choices"]] == words
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert [assembled(chunks, index)["text"] for index in range(3)] == words
    assert whole["usage"]["completion_tokens"] == sum(map(len, rows))
    assert len({stream.context.params.seed for stream in live.engine.streams[:3]}) == 1


@pytest.mark.parametrize("prompt", ["Hello 🙂", [4, 5, 6], [[4, 5], [6]]])
@pytest.mark.parametrize("is_stream", [False, True])
def test_echo_begins_with_the_prompt(
    live: Any, http: httpx2.Client, prompt: Any, is_stream: bool
) -> None:
    body = {"prompt": prompt, "echo": True, "stream": is_stream}
    reply = http.post("/v1/completions", json=body)

    text = assembled(events(reply))["text"] if is_stream else reply.json()["choices"][0]["text"]
    first = prompt[0] if isinstance(prompt[0], list) else prompt
    echo = first if isinstance(first, str) else live.tokenizer.decode(first)
    assert text == echo + "Hello world, how are you today?"


def test_chunks_are_bigger_when_the_engine_is_faster_than_the_reader(
    live: Any, http: httpx2.Client
) -> None:
    rng = random.Random(5)
    words = "".join(rng.choice(["one ", "two ", "six "]) for _ in range(60))
    live.says(words)
    live.engine.chunk_size = 50

    chunks = events(
        http.post("/v1/completions", json={"prompt": "a", "max_tokens": 200, "stream": True})
    )

    assert assembled(chunks)["text"] == words
    assert len(chunks) < 10


def test_silence_is_filled_with_comments(live: Any, http: httpx2.Client) -> None:
    live.engine.delay = 0.5
    live.says("Hello world", ends=True)

    reply = http.post("/v1/chat/completions", json=body_for("chat/completions", stream=True))

    assert reply.text.count(": ping\n\n") >= 2
    assert assembled(events(reply))["text"] == "Hello world"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_token_ids_are_those_of_the_engine(
    live: Any, http: httpx2.Client, endpoint: str, chunk_size: int
) -> None:
    """Prompt and output, whole and streamed; the end token is among them."""
    said = live.says(TEXT)
    live.engine.chunk_size = chunk_size
    plain = body_for(endpoint)
    body = plain | {"return_token_ids": True, "n": 2}

    whole = http.post(f"/v1/{endpoint}", json=body).json()
    chunks = events(http.post(f"/v1/{endpoint}", json={**body, "stream": True}))

    prompt = live.engine.streams[0].context.tokens.prompt.tolist()
    for choice in whole["choices"]:
        assert choice["token_ids"] == said
    for index in range(2):
        streamed = [c.get("token_ids", []) for c in choices(chunks) if c["index"] == index]
        assert list(itertools.chain(*streamed)) == said
    holders = (
        [whole, chunks[0]]
        if endpoint == "chat/completions"
        else [whole["choices"][1], chunks[0]["choices"][0], chunks[1]["choices"][0]]
    )
    for holder in holders:
        assert holder["prompt_token_ids"] == prompt
    silent = http.post(f"/v1/{endpoint}", json=plain).text
    assert "token_ids" not in silent


@pytest.mark.parametrize("max_tokens", [0, 4])
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_an_echo_tells_the_log_probabilities_of_the_prompt(
    live: Any, http: httpx2.Client, chunk_size: int, max_tokens: int
) -> None:
    """As OpenAI's completions had it, which evaluation harnesses read; whole and streamed."""
    live.says(TEXT)
    live.engine.chunk_size = chunk_size
    prompt = "one naïve 🙂 two"
    ids = live.tokenizer.encode(prompt)
    body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": 2}

    whole = http.post("/v1/completions", json=body).json()
    chunks = events(http.post("/v1/completions", json={**body, "stream": True}))

    for choice in whole["choices"]:
        told = choice["logprobs"]
        assert {len(column) for column in told.values()} == {len(ids) + max_tokens}
        assert told["token_logprobs"][:2] == [None, -0.25]
        assert told["top_logprobs"][0] is None
        assert told["tokens"][0] == "<|bos|>"
        assert told["text_offset"] == sorted(told["text_offset"])
        for token, offset in zip(told["tokens"][1:], told["text_offset"][1:], strict=True):
            if "\ufffd" not in token:
                assert choice["text"][offset:].startswith(token)
        streamed = assembled(chunks, choice["index"])
        assert streamed["text"] == choice["text"]
        assert streamed["finish_reason"] == choice["finish_reason"] == "length"
        for name, column in told.items():
            assert list(itertools.chain(*(part[name] for part in streamed["logprobs"]))) == column
    assert whole["choices"][0]["text"].startswith(prompt)
    assert whole["usage"]["completion_tokens"] == 2 * max_tokens


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_prompt_logprobs_have_vllms_shape(live: Any, http: httpx2.Client, endpoint: str) -> None:
    reply = http.post(f"/v1/{endpoint}", json=body_for(endpoint, prompt_logprobs=2)).json()

    prompt = live.engine.streams[0].context.tokens.prompt.tolist()
    told = (reply if endpoint == "chat/completions" else reply["choices"][0])["prompt_logprobs"]
    assert told[0] is None
    assert len(told) == len(prompt)
    for token, entry in zip(prompt[1:], told[1:], strict=True):
        assert len(entry) == 2
        spelled = live.tokenizer.token_bytes(token).decode("utf-8", "replace")
        assert entry[str(token)] == {"logprob": -0.25, "rank": 1, "decoded_token": spelled}
    bare = http.post(f"/v1/{endpoint}", json=body_for(endpoint, prompt_logprobs=0)).json()
    told = (bare if endpoint == "chat/completions" else bare["choices"][0])["prompt_logprobs"]
    assert [list(entry) for entry in told[1:]] == [[str(token)] for token in prompt[1:]]

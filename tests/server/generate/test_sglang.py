"""SGLang's native route, by its shapes."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.config.limits import LIMITS
from quire.server.errors import GenerationFailed
from quire.server.generate.sglang_schema import DEFAULT_NEW_TOKENS

TEXT = "Hello world, how are you today?"


def generate(http: httpx2.Client, **fields: Any) -> Any:
    reply = http.post("/generate", json={"text": "Say it: ", **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def streamed(http: httpx2.Client, **fields: Any) -> list[Any]:
    reply = http.post("/generate", json={"text": "Say it: ", **fields, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream"), reply.text
    *events, last = reply.text.strip().split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def timeless(reply: Any) -> Any:
    """A reply without what differs each time."""
    meta = {key: reply["meta_info"][key] for key in reply["meta_info"] if key != "e2e_latency"}
    return {**reply, "meta_info": {**meta, "id": "", "cached_tokens": 0}}


def test_whole(live: Any, http: httpx2.Client) -> None:
    live.engine.cached_tokens = 3
    live.engine.chunk_size = 2

    reply = generate(http, rid="mine")

    tokens = live.says(TEXT)
    prompt = live.tokenizer.encode("Say it: ")
    assert live.engine.streams[0].context.tokens.prompt.tolist() == prompt
    assert reply["meta_info"].pop("e2e_latency") > 0
    assert reply == {
        "text": TEXT,
        "output_ids": tokens,
        "meta_info": {
            "id": "mine",
            "finish_reason": {"type": "stop", "matched": tokens[-1]},
            "prompt_tokens": len(prompt),
            "completion_tokens": len(tokens),
            "cached_tokens": 3,
        },
    }


def test_token_ids_go_in_as_they_are(live: Any, http: httpx2.Client) -> None:
    generate(http, text=None, input_ids=[5, 6, 7])

    assert live.engine.streams[0].context.tokens.prompt.tolist() == [5, 6, 7]


def test_batches(live: Any, http: httpx2.Client) -> None:
    params = [{"max_new_tokens": 2}, {"max_new_tokens": 3}]
    replies = generate(http, text=["a", "b"], sampling_params=params, rid="x")
    of_ids = generate(http, text=None, input_ids=[[5], [6, 7]])
    choices = generate(http, sampling_params={"n": 2})

    assert [reply["meta_info"]["id"] for reply in replies] == ["x_0", "x_1"]
    assert [reply["meta_info"]["finish_reason"] for reply in replies] == [
        {"type": "length", "length": 2},
        {"type": "length", "length": 3},
    ]
    assert [reply["meta_info"]["prompt_tokens"] for reply in of_ids] == [1, 2]
    assert [choice["text"] for choice in choices] == [TEXT, TEXT]
    assert len({choice["meta_info"]["id"] for choice in choices}) == 2
    assert generate(http, text=["a"])[0]["text"] == TEXT
    assert generate(http, text=["a", "b"], rid=["p", "q"])[1]["meta_info"]["id"] == "q"


def test_logprobs(live: Any, http: httpx2.Client) -> None:
    fields = {"return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True}
    meta = generate(http, **fields, logprob_start_len=0)["meta_info"]
    tokens = live.says(TEXT)
    prompt = live.tokenizer.encode("Say it: ")

    def text(token: int) -> str:
        spelled: str = live.tokenizer.token_bytes(token).decode("utf-8", "replace")
        return spelled

    assert meta["output_token_logprobs"] == [[-0.25, token, text(token)] for token in tokens]
    assert meta["output_top_logprobs"][0][0] == [-0.25, tokens[0], text(tokens[0])]
    assert [len(row) for row in meta["output_top_logprobs"]] == [2] * len(tokens)
    assert meta["input_token_logprobs"][0] == [None, prompt[0], text(prompt[0])]
    assert [row[1] for row in meta["input_token_logprobs"]] == prompt
    assert [row[0] for row in meta["input_token_logprobs"][1:]] == [-0.25] * (len(prompt) - 1)
    assert meta["input_top_logprobs"][0] is None
    assert len(meta["input_top_logprobs"]) == len(prompt)

    later = generate(http, return_logprob=True, logprob_start_len=2)["meta_info"]
    assert [row[:2] for row in later["input_token_logprobs"]] == [
        [None, prompt[2]],
        *([-0.25, token] for token in prompt[3:]),
    ]
    plain = generate(http, return_logprob=True)["meta_info"]
    assert plain["input_token_logprobs"] == [] and "output_top_logprobs" not in plain
    assert plain["output_token_logprobs"][0] == [-0.25, tokens[0], None]


def test_a_prompt_alone_can_be_scored(live: Any, http: httpx2.Client) -> None:
    reply = generate(
        http, return_logprob=True, logprob_start_len=0, sampling_params={"max_new_tokens": 0}
    )

    assert (reply["text"], reply["output_ids"]) == ("", [])
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
    assert len(reply["meta_info"]["input_token_logprobs"]) == reply["meta_info"]["prompt_tokens"]


def test_the_prompts_of_a_batch_share_the_limit_of_values(live: Any, http: httpx2.Client) -> None:
    live.engine.max_length = 1000
    body: Any = {
        "input_ids": [[5] * 900] * 32,
        "sampling_params": {"max_new_tokens": 1, "n": 4},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": LIMITS.logprobs,
    }

    reply = http.post("/generate", json=body)
    body["input_ids"] = body["input_ids"][:1]

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "logprob_start_len")
    assert http.post("/generate", json=body).status_code == 200


def test_sampling_params_arrive(live: Any, http: httpx2.Client) -> None:
    generate(
        http,
        sampling_params={
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "min_p": 0.1,
            "n": 1,
            "frequency_penalty": 0.1,
            "presence_penalty": 0.2,
            "repetition_penalty": 1.1,
            "max_new_tokens": 5,
            "min_new_tokens": 2,
            "sampling_seed": 9,
            "ignore_eos": True,
            "stop": "zzz",
            "stop_token_ids": [4],
            "logit_bias": {"5": 1.0},
            "skip_special_tokens": False,
            "no_stop_trim": True,
        },
    )
    generate(http)

    given, default = (stream.context.params for stream in live.engine.streams)
    assert (given.temperature, given.top_p, given.top_k, given.min_p) == (0.5, 0.9, 7, 0.1)
    assert (given.frequency_penalty, given.presence_penalty) == (0.1, 0.2)
    assert (given.repetition_penalty, given.seed, given.ignore_eos) == (1.1, 9, True)
    assert (given.max_new_tokens, given.min_new_tokens) == (5, 2)
    assert (given.stop, given.stop_token_ids) == (("zzz",), (4,))
    assert (given.logit_bias, given.include_stop_str_in_output) == ({5: 1.0}, True)
    assert not given.skip_special_tokens
    assert (default.max_new_tokens, default.temperature) == (DEFAULT_NEW_TOKENS, 1.0)
    assert (default.top_k, default.top_p) == (-1, 1.0)


def test_stop_strings(live: Any, http: httpx2.Client) -> None:
    cut = generate(http, sampling_params={"stop": ["how", "x"]})
    kept = generate(http, sampling_params={"stop": "how", "no_stop_trim": True})

    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": "how"}
    assert (cut["text"], kept["text"]) == ("Hello world, ", "Hello world, how")


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("json_schema", '{"type": "object"}', "json_schema"),
        ("regex", "[0-9]+", "regex"),
        ("ebnf", 'root ::= "a"', "ebnf"),
        ("structural_tag", '{"type": "structural_tag"}', "structural_tag"),
    ],
)
def test_grammars(make_model: Any, http: httpx2.Client, name: str, value: str, kind: str) -> None:
    make_model.says("{}")

    generate(http, sampling_params={name: value})

    assert make_model.compiler.asked[0][0].kind == kind


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.text("ab é🙂", min_size=1, max_size=12),
    chunk_size=st.integers(1, 5),
    stop=st.sampled_from([None, "a", "b ", "🙂"]),
    batch=st.booleans(),
)
def test_the_last_event_says_what_the_whole_reply_says(
    live: Any, http: httpx2.Client, text: str, chunk_size: int, stop: str | None, batch: bool
) -> None:
    live.says(text)
    live.engine.chunk_size = chunk_size
    fields: dict[str, Any] = {
        "text": ["a", "b"] if batch else "a",
        "sampling_params": {"stop": stop} if stop else {},
        "return_logprob": True,
    }

    events = streamed(http, **fields)
    wholes = generate(http, **fields)

    lasts = {event.pop("index", 0): event for event in events}
    assert [timeless(lasts[at]) for at in sorted(lasts)] == [
        timeless(reply) for reply in (wholes if batch else [wholes])
    ]
    for event in events:
        meta, last = event["meta_info"], lasts[0]
        assert last["text"].startswith(event["text"])
        assert meta["completion_tokens"] == len(event["output_ids"])
        assert (meta["finish_reason"] is None) is ("e2e_latency" not in meta)


def test_a_failure_is_the_streams_last_event(live: Any, http: httpx2.Client) -> None:
    live.engine.fails_after, live.engine.failure = 2, GenerationFailed("It failed")

    assert streamed(http)[-1]["error"]["message"] == "It failed"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"text": ""}, "text"),
    ({"text": []}, "text"),
    ({"text": 5}, "text"),
    ({"text": ["a"] * (LIMITS.prompts + 1)}, "text"),
    ({"input_ids": [5]}, "text"),
    ({"text": None, "input_ids": []}, "input_ids"),
    ({"text": None, "input_ids": [[]]}, "input_ids.0"),
    ({"text": None, "input_ids": [-1]}, "input_ids.0"),
    ({"text": None, "input_ids": [10**6]}, "input_ids"),
    ({"text": "word " * 4000}, "text"),
    ({"return_logprob": [True]}, "return_logprob"),
    ({"top_logprobs_num": 2}, "top_logprobs_num"),
    ({"return_logprob": True, "top_logprobs_num": 21}, "top_logprobs_num"),
    ({"logprob_start_len": 0}, "logprob_start_len"),
    ({"return_logprob": True, "logprob_start_len": 99}, "logprob_start_len"),
    ({"return_logprob": True, "logprob_start_len": 0, "stream": True}, "logprob_start_len"),
    ({"rid": ["a", "b"]}, "rid"),
    ({"sampling_params": [{}]}, "sampling_params"),
    ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
    ({"text": ["a", "b"], "sampling_params": [{}, {"n": 2}]}, "sampling_params"),
    ({"text": ["a"] * 2, "sampling_params": [{}, {"max_new_tokens": 0}]}, "sampling_params"),
    ({"text": ["a"] * 2, "sampling_params": {"n": 65}}, "sampling_params.n"),
    ({"lora_path": "a"}, "lora_path"),
    ({"image_data": "a"}, "image_data"),
    ({"token_ids_logprob": [5]}, "token_ids_logprob"),
    ({"custom_logit_processor": "a"}, "custom_logit_processor"),
    ({"session_params": {}}, "session_params"),
    ({"max_new_tokens": 5}, "max_new_tokens"),
    *(
        ({"sampling_params": fields}, f"sampling_params.{name}")
        for fields, name in [
            ({"max_new_tokens": -1}, "max_new_tokens"),
            ({"max_new_tokens": 10**6}, "max_new_tokens"),
            ({"min_new_tokens": 9, "max_new_tokens": 5}, "min_new_tokens"),
            ({"temperature": -1}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"top_k": -2}, "top_k"),
            ({"repetition_penalty": 2.5}, "repetition_penalty"),
            ({"stop": [""]}, "stop.0"),
            ({"stop_regex": "a"}, "stop_regex"),
            ({"stop_token_ids": [10**6]}, "stop_token_ids"),
            ({"logit_bias": {"a": 1}}, "logit_bias"),
            ({"json_schema": "{"}, "json_schema"),
            ({"json_schema": "{}", "regex": "a"}, "json_schema"),
            ({"custom_params": {"a": 1}}, "custom_params"),
            ({"max_tokens": 5}, "max_tokens"),
        ]
    ),
]


@pytest.mark.parametrize(("fields", "name"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_named(live: Any, http: httpx2.Client, fields: Any, name: str) -> None:
    reply = http.post("/generate", json={"text": "a", **fields})

    assert reply.status_code == 400
    assert f"'{name}'" in reply.json()["error"]["message"], reply.text
    assert live.engine.streams == []


@pytest.mark.parametrize("body", [{}, {"inputs": "a", "text": "b"}, {"prompt": "a"}])
def test_a_body_of_neither_server_is_told_of_both(
    live: Any, http: httpx2.Client, body: dict[str, Any]
) -> None:
    reply = http.post("/generate", json=body)

    assert reply.status_code == 400
    assert "'inputs'" in reply.json()["error"] and "'text'" in reply.json()["error"]


def test_a_model_of_vectors_does_not_generate(
    live: Any, http: httpx2.Client, make_vectors: Callable[[], None]
) -> None:
    make_vectors()

    for body in ({"text": "a"}, {"inputs": "a"}):
        assert http.post("/generate", json=body).status_code == 400

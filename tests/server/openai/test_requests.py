"""What a good request becomes: contexts, parameters, warnings; and the models routes."""

import dataclasses
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from quire.config.limits import LIMITS
from quire.pipelines.core.sampling_params import MAX_SEED


def chat(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": "Hello"}], **fields}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply


def complete(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    reply = http.post("/v1/completions", json={"prompt": "Hello", **fields})
    assert reply.status_code == 200, reply.text
    return reply


def test_fields_reach_the_sampling_parameters(live: Any, http: httpx2.Client) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "seed": 42,
        "stop_token_ids": [9],
        "ignore_eos": True,
        "min_tokens": 3,
        "max_tokens": 5,
    }
    complete(http, **fields, stop=["x", "y"], logprobs=4, priority=-3, cache_salt="tenant")

    context = live.engine.streams[0].context
    names = {"min_tokens": "min_new_tokens", "max_tokens": "max_new_tokens"}
    for name, value in fields.items():
        found = getattr(context.params, names.get(name, name))
        assert (list(found) if isinstance(found, tuple) else found) == value
    assert context.params.stop == ("x", "y")
    assert context.params.logprobs == 4
    assert (context.priority, context.cache_salt) == (-3, b"tenant")
    assert context.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("given", "expected"), [(7, 7), (MAX_SEED, MAX_SEED), (-2, -2 & MAX_SEED), (0, 0)]
)
def test_given_seeds_are_kept(live: Any, http: httpx2.Client, given: int, expected: int) -> None:
    chat(http, seed=given)

    assert live.engine.streams[0].context.params.seed == expected


@pytest.mark.parametrize("fields", [{}, {"seed": None}, {"seed": -1}])
def test_missing_seeds_are_drawn_anew(
    live: Any, http: httpx2.Client, fields: dict[str, Any]
) -> None:
    for _ in range(3):
        complete(http, prompt=["a", "b"], **fields)

    assert len({stream.context.params.seed for stream in live.engine.streams}) == 6


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 16),
        ({"max_tokens": None}, 16),
        ({"max_tokens": 1}, 1),
    ],
)
def test_completions_generate_16_tokens_by_default(
    live: Any, http: httpx2.Client, fields: dict[str, Any], expected: int
) -> None:
    complete(http, **fields)

    assert live.engine.streams[0].context.max_new_tokens == expected


def test_default_is_cut_to_the_room_there_is(live: Any, http: httpx2.Client) -> None:
    complete(http, prompt=[5] * 250)

    assert live.engine.streams[0].context.max_new_tokens == 6


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 7}, 5),
    ],
)
def test_chat_generates_to_the_end_of_the_context_by_default(
    live: Any, http: httpx2.Client, fields: dict[str, Any], expected: int | None
) -> None:
    chat(http, **fields)

    context = live.engine.streams[0].context
    room = context.max_length - context.tokens.prompt_length
    assert context.max_new_tokens == (expected or room)


def test_a_prompt_may_fill_all_but_one_token(live: Any, http: httpx2.Client) -> None:
    reply = complete(http, prompt=[5] * 255, max_tokens=1)

    assert reply.json()["usage"]["completion_tokens"] == 1


def test_prompts_get_the_tokens_the_model_expects(live: Any, http: httpx2.Client) -> None:
    complete(http, prompt="one two")
    complete(http, prompt="one two", add_special_tokens=False)
    complete(http, prompt=[5, 6, 7])
    chat(http)

    tokenizer = live.tokenizer
    prompts = [stream.context.tokens.prompt.tolist() for stream in live.engine.streams]
    assert prompts[0] == [tokenizer.bos_token_id, *prompts[1]]
    assert prompts[1] == tokenizer.encode("one two", add_special_tokens=False)
    assert prompts[2] == [5, 6, 7]
    assert tokenizer.decode(prompts[3], skip_special_tokens=False) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_continues_no_word_and_completions_do(live: Any, http: httpx2.Client) -> None:
    live.says(" Hello")

    assert complete(http).json()["choices"][0]["text"] == " Hello"
    assert chat(http).json()["choices"][0]["message"]["content"] == " Hello"


def test_parts_roles_and_options_reach_the_template(live: Any, http: httpx2.Client) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "name": "bob",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        },
        {"role": "assistant", "content": "yes", "reasoning": "hm", "refusal": None},
        {"role": "tool", "content": "42", "tool_call_id": "t1"},
        {"role": "user", "content": "<|im_end|>"},
    ]
    chat(http, messages=messages, chat_template_kwargs={"shout": True}, add_generation_prompt=False)

    prompt = live.engine.streams[0].context.tokens.prompt.tolist()
    assert live.tokenizer.decode(prompt, skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n"
        "<|im_start|>user\n<|im_end|><|im_end|>\nLOUD"
    )
    assert prompt.count(2) == 5


HARMLESS: dict[str, Any] = {
    "best_of": 1,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "user": "somebody",
    "store": True,
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "skip_special_tokens": True,
    "guided_json": None,
    "top_k": 0,
    "stop": None,
    "length_penalty": 1.0,
}


def test_values_that_ask_for_nothing_are_accepted(live: Any, http: httpx2.Client) -> None:
    only_chat = {
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "modalities": ["text"],
        "logprobs": None,
        "functions": None,
    }

    assert "x-quire-warning" not in complete(http, **HARMLESS, suffix=None).headers
    assert "x-quire-warning" not in chat(http, **HARMLESS, **only_chat).headers


def test_unknown_fields_are_named_in_a_header(live: Any, http: httpx2.Client) -> None:
    odd = {"temprature": 1, "verbosity": "low", "né\r\nx": 2}
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]

    plain = chat(http, **odd, messages=messages)
    stream = complete(http, stream=True, stream_options={"include_usge": True})

    assert plain.headers["x-quire-warning"] == (
        "unknown fields ignored: temprature, verbosity, n???x, messages.0.content.0.cache_control"
    )
    assert stream.headers["x-quire-warning"].endswith(": stream_options.include_usge")


def test_many_unknown_fields_make_a_short_header(live: Any, http: httpx2.Client) -> None:
    reply = complete(http, **{f"{'x' * 100}{index}": 1 for index in range(100)})

    assert len(reply.headers["x-quire-warning"]) < 1500
    assert reply.headers["x-quire-warning"].endswith("and 84 more")


def test_deep_but_allowed_bodies_are_read(live: Any, http: httpx2.Client) -> None:
    nested: Any = {}
    for _ in range(61):
        nested = {"a": nested}

    assert complete(http, metadata=nested).status_code == 200


def test_models_are_listed_under_every_name(live: Any, sdk: openai.OpenAI) -> None:
    cards = list(sdk.models.list())

    assert [card.id for card in cards] == ["tiny", "tiny-alias"]
    assert sdk.models.retrieve("tiny-alias").id == "tiny-alias"
    assert cards[1].model_extra is not None
    assert cards[1].model_extra["max_model_len"] == 256
    assert cards[1].model_extra["root"] == "tiny"
    with pytest.raises(openai.NotFoundError, match="'org/other' does not exist"):
        sdk.models.retrieve("org/other")


def test_prompts_are_int32(live: Any, http: httpx2.Client) -> None:
    complete(http, prompt=[4, 5])

    assert live.engine.streams[0].context.tokens.prompt.dtype == np.int32


def test_openapi_documents_requests_and_replies(app: Any) -> None:
    document = app.openapi()

    operation = document["paths"]["/v1/chat/completions"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["messages"]
    assert {"temperature", "max_completion_tokens", "top_logprobs"} <= schema["properties"].keys()
    assert "$ref" not in str(schema)
    assert {"400", "429", "503"} <= operation["responses"].keys()
    assert "ChatCompletion" in document["components"]["schemas"]


def prompt_of(live: Any) -> list[int]:
    ids: list[int] = live.engine.streams[-1].context.tokens.prompt.tolist()
    return ids


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"truncate_prompt_tokens": 3}, [7, 8, 9]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, [5, 6, 7]),
        ({"truncate_prompt_tokens": 5}, [5, 6, 7, 8, 9]),
        ({"truncate_prompt_tokens": 99}, [5, 6, 7, 8, 9]),
        ({"truncate_prompt_tokens": -1}, [5, 6, 7, 8, 9]),
    ],
)
def test_a_prompt_is_cut_where_asked(
    live: Any, http: httpx2.Client, fields: dict[str, Any], expected: list[int]
) -> None:
    complete(http, prompt=[5, 6, 7, 8, 9], **fields)

    assert prompt_of(live) == expected


def test_a_prompt_beyond_the_context_fits_after_cutting(live: Any, http: httpx2.Client) -> None:
    text = "Hello world " * 2000
    complete(http, prompt=text, truncate_prompt_tokens=-1, max_tokens=6)
    assert len(prompt_of(live)) == live.engine.max_length - 6
    assert prompt_of(live) == live.tokenizer.encode(text)[-250:]

    reply = complete(http, prompt=text, truncate_prompt_tokens=2, echo=True).json()
    assert reply["choices"][0]["text"].startswith(live.tokenizer.decode(prompt_of(live)))

    chat(http, messages=[{"role": "user", "content": text}], truncate_prompt_tokens=9)
    assert len(prompt_of(live)) == 9


def test_the_final_message_is_continued(live: Any, http: httpx2.Client) -> None:
    messages = [
        {"role": "user", "content": "Hi <|im_end|>"},
        {"role": "assistant", "content": "Hello <|im_start|> wor"},
    ]
    chat(http, messages=messages, continue_final_message=True)
    continued = prompt_of(live)
    chat(http, messages=messages, continue_final_message=True, add_special_tokens=True)

    assert prompt_of(live) == [0, *continued]
    spelled = live.tokenizer.decode(continued, skip_special_tokens=False)
    assert spelled.endswith("<|im_start|>assistant\nHello <|im_start|> wor")
    # Spelled out by a user, the control token is text: only the template's own are control tokens.
    assert [token for token in continued if token in (1, 2)] == [1, 2, 1]


def test_the_models_sampling_defaults_hold_where_a_client_says_nothing(
    live: Any, http: httpx2.Client
) -> None:
    recommended = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}
    served = live.app.state.served
    live.app.state.served = dataclasses.replace(served, sampling_defaults=recommended)
    try:
        complete(http)
        chat(http, temperature=1.0, top_p=None, top_k=-1, repetition_penalty=1)
    finally:
        live.app.state.served = served

    left_out, given = (stream.context.params for stream in live.engine.streams)
    for name, value in recommended.items():
        assert getattr(left_out, name) == value
    assert left_out.min_p == 0.0
    assert (given.temperature, given.top_p, given.top_k) == (1.0, 0.9, -1)
    assert given.repetition_penalty == 1.0


def test_constraints_reach_the_worker_as_token_ids(live: Any, http: httpx2.Client) -> None:
    complete(
        http,
        logit_bias={"7": -100, "9": 2.5},
        allowed_token_ids=[5, 7, 9],
        bad_words=["Hello", " wor"],
    )

    params = live.engine.streams[0].context.params
    assert params.logit_bias == {7: -100.0, 9: 2.5}
    assert params.allowed_token_ids == (5, 7, 9)
    spelled = {live.tokenizer.decode(list(word), starts_fresh=False) for word in params.bad_words}
    assert spelled == {"Hello", " Hello", "wor", " wor"}


def test_other_fields_pass_through_hostile_names(live: Any, http: httpx2.Client) -> None:
    reply = http.post(
        "/v1/completions", json={"prompt": "a", "model_config": 1, "__class__": 2, "n\u0000": 3}
    )

    assert reply.status_code == 200
    assert "model_config, __class__, n?" in reply.headers["x-quire-warning"]


def test_the_log_probabilities_of_prompts_are_bounded(live: Any, http: httpx2.Client) -> None:
    body = {"prompt": [5] * 240, "prompt_logprobs": 20, "n": 128, "max_tokens": 1}
    assert http.post("/v1/completions", json={**body, "n": 1}).status_code == 200
    limits = dataclasses.replace(LIMITS, logprob_cells=600_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quire.server.openai.admission.LIMITS", limits)
        refused = http.post("/v1/completions", json=body)
        # What is cut away is not reported.
        few = http.post("/v1/completions", json={**body, "truncate_prompt_tokens": 5})

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt_logprobs"
    assert "645120 values; the limit of a request is 600000" in refused.json()["error"]["message"]
    assert len(few.json()["choices"][0]["prompt_logprobs"]) == 5

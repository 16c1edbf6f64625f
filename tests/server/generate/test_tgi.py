"""text-generation-inference's routes, by Hugging Face's own client and by their shapes."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import OverloadedError, TextGenerationError, ValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.server.errors import GenerationFailed, Overloaded

TEXT = "Hello world, how are you today?"
GREEDY = 0.0


@pytest.fixture
def sdk(live: Any, monkeypatch: pytest.MonkeyPatch) -> InferenceClient:
    # The suite keeps this library off the network; the test's own server is not that.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return InferenceClient(model=live.url, provider="hf-inference")


def generate(http: httpx2.Client, inputs: str = "Say it: ", **parameters: Any) -> Any:
    return http.post("/generate", json={"inputs": inputs, "parameters": parameters})


def streamed(http: httpx2.Client, body: Any, path: str = "/generate_stream") -> list[Any]:
    reply = http.post(path, json=body)
    assert reply.headers["content-type"].startswith("text/event-stream"), reply.text
    events = [line for line in reply.text.split("\n\n") if line]
    return [json.loads(line.removeprefix("data: ")) for line in events]


def test_the_client_gets_text(live: Any, sdk: InferenceClient) -> None:
    assert sdk.text_generation("Say it: ", max_new_tokens=40) == TEXT
    assert "".join(sdk.text_generation("Say it: ", stream=True)).startswith(TEXT)
    assert sdk.text_generation("Say it: ", return_full_text=True) == "Say it: " + TEXT


def test_the_client_gets_details(live: Any, sdk: InferenceClient) -> None:
    live.engine.chunk_size = 3

    whole = sdk.text_generation("Hi", details=True, decoder_input_details=True, top_n_tokens=2)
    events = list(sdk.text_generation("Hi", details=True, stream=True, top_n_tokens=2))

    assert whole.generated_text == TEXT and whole.details is not None
    assert (whole.details.finish_reason, whole.details.generated_tokens) == ("eos_token", 10)
    tokens = whole.details.tokens
    assert "".join(token.text for token in tokens if not token.special) == TEXT
    assert [token.special for token in tokens] == [False] * 9 + [True]
    assert [token.logprob for token in tokens] == [-0.25] * 10
    prompt = live.engine.streams[0].context.tokens.prompt.tolist()
    assert [token.id for token in whole.details.prefill] == prompt
    assert whole.details.prefill[0].logprob is None
    assert [len(row) for row in whole.details.top_tokens or []] == [2] * 10

    assert [event.index for event in events] == list(range(1, 11))
    assert [vars(event.token) for event in events] == [*map(vars, tokens)]
    assert len(events[0].top_tokens or []) == 2
    assert [event.generated_text for event in events] == [None] * 9 + [TEXT]
    last = events[-1].details
    assert last is not None and events[0].details is None
    assert (last.finish_reason, last.generated_tokens) == ("eos_token", 10)
    assert (last.input_length, last.seed) == (len(prompt), None)


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, GREEDY),
        ({"temperature": 1.0}, GREEDY),
        ({"top_p": 1.0}, GREEDY),
        ({"repetition_penalty": 1.2}, GREEDY),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.7}, 0.7),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.5}, 1.0),
        ({"do_sample": False, "temperature": 0.5}, 0.5),
    ],
)
def test_sampling_is_greedy_unless_something_asks_for_more(
    live: Any, http: httpx2.Client, parameters: Any, temperature: float
) -> None:
    reply = generate(http, details=True, seed=7, **parameters).json()

    params = live.engine.streams[-1].context.params
    assert params.temperature == temperature
    assert reply["details"]["seed"] == (None if temperature == GREEDY else 7)
    assert params.top_k == parameters.get("top_k", -1)
    assert params.top_p == parameters.get("top_p", 1.0)


def test_a_drawn_seed_is_told_and_repeats_the_reply(live: Any, http: httpx2.Client) -> None:
    seed = generate(http, details=True, do_sample=True).json()["details"]["seed"]
    generate(http, do_sample=True, seed=seed)

    first, second = (stream.context.params.seed for stream in live.engine.streams)
    assert first == second == seed


def test_the_text_ends_with_the_stop_string(live: Any, http: httpx2.Client) -> None:
    reply = generate(http, stop=["how"], details=True).json()
    events = streamed(http, {"inputs": "a", "parameters": {"stop": ["how"], "details": True}})

    assert reply["generated_text"] == events[-1]["generated_text"] == "Hello world, how"
    assert reply["details"]["finish_reason"] == "stop_sequence"
    assert events[-1]["details"]["finish_reason"] == "stop_sequence"


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.text("ab é🙂", min_size=1, max_size=12),
    chunk_size=st.integers(1, 5),
    stop=st.sampled_from([[], ["a"], ["b ", "🙂"]]),
    limit=st.integers(1, 20),
)
def test_a_stream_says_what_the_whole_reply_says(
    live: Any, http: httpx2.Client, text: str, chunk_size: int, stop: list[str], limit: int
) -> None:
    live.says(text)
    live.engine.chunk_size = chunk_size
    parameters = {"stop": stop, "max_new_tokens": limit, "details": True, "top_n_tokens": 1}

    whole = generate(http, **parameters).json()
    events = streamed(http, {"inputs": "a", "parameters": parameters})

    *_, last = events
    details = whole["details"]
    assert last["generated_text"] == whole["generated_text"]
    assert [event["token"] for event in events] == details["tokens"]
    assert [event["top_tokens"] for event in events] == details["top_tokens"]
    for name in ("finish_reason", "generated_tokens", "seed"):
        assert last["details"][name] == details[name]
    assert {event["generated_text"] for event in events[:-1]} <= {None}


def test_limits_of_input_and_output(live: Any, http: httpx2.Client) -> None:
    reply = generate(http, "one two three four", truncate=2, max_new_tokens=3, details=True).json()

    assert (reply["details"]["finish_reason"], len(reply["details"]["tokens"])) == ("length", 3)
    context = live.engine.streams[0].context
    whole = live.tokenizer.encode("one two three four")
    assert context.tokens.prompt.tolist() == whole[-2:]


@pytest.mark.parametrize(
    ("grammar", "kind"),
    [
        ({"type": "regex", "value": "[0-9]+"}, "regex"),
        ({"type": "json", "value": {"type": "object"}}, "json_schema"),
        ({"type": "json", "value": '{"type": "object"}'}, "json_schema"),
        (
            {"type": "json_schema", "value": {"name": "a", "schema": {"type": "object"}}},
            "json_schema",
        ),
    ],
)
def test_grammars(make_model: Any, http: httpx2.Client, grammar: Any, kind: str) -> None:
    make_model.says("{}")

    assert generate(http, grammar=grammar).json() == {"generated_text": "{}"}
    assert make_model.compiler.asked[0][0].kind == kind


def test_the_root_route_answers_with_a_list(live: Any, http: httpx2.Client) -> None:
    assert http.post("/", json={"inputs": "a"}).json() == [{"generated_text": TEXT}]
    events = streamed(http, {"inputs": "a", "stream": True}, "/")
    assert events == streamed(http, {"inputs": "a", "stream": True}, "/generate")


def test_info(live: Any, http: httpx2.Client, sdk: InferenceClient) -> None:
    info = http.get("/info").json()

    assert (info["model_id"], info["max_total_tokens"]) == ("tiny", 256)
    assert sdk.get_endpoint_info() == info


def test_info_is_of_models_that_generate(
    make_vectors: Callable[[], None], http: httpx2.Client
) -> None:
    make_vectors()

    reply = http.get("/info")

    assert (reply.status_code, reply.json()["error_type"]) == (400, "validation")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"inputs": ""}, "inputs"),
    ({"inputs": 5}, "inputs"),
    ({"inputs": None}, "inputs"),
    ({"inputs": "word " * 4000}, "inputs"),
    ({"parameters": []}, "parameters"),
    ({"stream": "yes"}, "stream"),
    *(
        ({"parameters": fields}, f"parameters.{name}")
        for fields, name in [
            ({"max_new_tokens": 0}, "max_new_tokens"),
            ({"max_new_tokens": 10**6}, "max_new_tokens"),
            ({"temperature": 0}, "temperature"),
            ({"temperature": 2.5}, "temperature"),
            ({"top_k": 0}, "top_k"),
            ({"top_p": 0}, "top_p"),
            ({"typical_p": 0.5}, "typical_p"),
            ({"repetition_penalty": 0}, "repetition_penalty"),
            ({"frequency_penalty": 3}, "frequency_penalty"),
            ({"seed": -1}, "seed"),
            ({"stop": "a"}, "stop"),
            ({"stop": [""]}, "stop.0"),
            ({"best_of": 2}, "best_of"),
            ({"watermark": True}, "watermark"),
            ({"adapter_id": "a"}, "adapter_id"),
            ({"truncate": 0}, "truncate"),
            ({"top_n_tokens": 21}, "top_n_tokens"),
            ({"max_tokens": 5}, "max_tokens"),
            ({"guided_json": {}}, "guided_json"),
            ({"grammar": {"type": "lark", "value": ""}}, "grammar.type"),
            ({"grammar": {"type": "regex", "value": {}}}, "grammar.value"),
            ({"grammar": {"type": "json_schema", "value": {}}}, "grammar.value"),
            ({"grammar": {"type": "json", "value": "{"}}, "grammar.value"),
            ({"grammar": {"type": "json", "value": {"type": "x"}}}, "grammar.value"),
        ]
    ),
]


@pytest.mark.parametrize(("fields", "name"), BAD, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_bad_input_is_named(
    live: Any, http: httpx2.Client, path: str, fields: Any, name: str
) -> None:
    reply = http.post(path, json={"inputs": "a", **fields})

    assert reply.status_code == 400
    assert reply.json()["error_type"] == "validation"
    assert f"'{name}'" in reply.json()["error"], reply.text
    assert live.engine.streams == []


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_input_details_cannot_be_streamed(live: Any, http: httpx2.Client, path: str) -> None:
    body = {"inputs": "a", "parameters": {"decoder_input_details": True}, "stream": True}

    assert "'parameters.decoder_input_details'" in http.post(path, json=body).json()["error"]


def test_errors_are_the_clients_own(live: Any, http: httpx2.Client, sdk: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="top_n_tokens"):
        sdk.text_generation("a", top_n_tokens=50)
    live.engine.refusal = Overloaded("The queue is full", 1.0)
    with pytest.raises(OverloadedError, match="queue is full"):
        sdk.text_generation("a")
    live.engine.refusal = None
    live.engine.fails_after, live.engine.failure = 2, GenerationFailed("It failed")
    with pytest.raises(TextGenerationError, match="It failed"):
        sdk.text_generation("a", stream=False, details=True)
    with pytest.raises(TextGenerationError, match="It failed"):
        list(sdk.text_generation("a", stream=True))
    assert http.post("/generate", content=b"{").json()["error_type"] == "validation"


def test_only_the_route_at_the_root_has_the_clients_errors(live: Any, http: httpx2.Client) -> None:
    live.engine.refusal = Overloaded("The queue is full", 1.0)

    assert http.post("/", json={"inputs": "a"}).json()["error_type"] == "overloaded"
    for reply in (http.get("/"), http.post("/x", json={}), http.post("/generates", json={})):
        assert reply.json()["error"]["type"] == "invalid_request_error"

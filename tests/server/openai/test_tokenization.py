"""/tokenize, /detokenize, /tokenizer_info and /invocations against the tokenizers library."""

from typing import Any

import httpx2
import pytest


def posted(http: httpx2.Client, path: str, **body: Any) -> Any:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_prompt_becomes_the_ids_that_completions_uses(live: Any, http: httpx2.Client) -> None:
    reply = posted(http, "/tokenize", prompt="Hello world", model="tiny")
    posted(http, "/v1/completions", prompt="Hello world", max_tokens=1)

    assert reply["tokens"] == live.engine.streams[0].context.tokens.all.tolist()[: reply["count"]]
    assert reply["count"] == len(reply["tokens"])
    assert reply["max_model_len"] == 256
    assert reply["token_strs"] is None


def test_special_tokens_are_added_unless_told_otherwise(http: httpx2.Client) -> None:
    with_bos = posted(http, "/tokenize", prompt="Hello")["tokens"]

    assert (
        with_bos[1:]
        == posted(http, "/tokenize", prompt="Hello", add_special_tokens=False)["tokens"]
    )
    assert with_bos[0] == 0


def test_a_conversation_becomes_the_ids_that_chat_uses(live: Any, http: httpx2.Client) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    reply = posted(http, "/tokenize", messages=messages, return_token_strs=True)
    posted(http, "/v1/chat/completions", messages=messages, max_tokens=1)

    assert reply["tokens"] == live.engine.streams[0].context.tokens.all.tolist()[: reply["count"]]
    assert "".join(reply["token_strs"]).endswith("<|im_start|>assistant\n")
    bare = posted(http, "/tokenize", messages=messages, add_generation_prompt=False)
    assert reply["tokens"][: bare["count"]] == bare["tokens"]


@pytest.mark.parametrize("text", ["", "Hello world", "héllo 🙂 日本語", " leading", "a<|im_end|>b"])
def test_detokenize_undoes_tokenize(http: httpx2.Client, text: str) -> None:
    tokens = posted(http, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]

    assert posted(http, "/detokenize", tokens=tokens) == {"prompt": text}


def test_the_tokenizer_describes_itself(http: httpx2.Client) -> None:
    info = http.get("/tokenizer_info").json()

    assert info["special_tokens"] == {"<|bos|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert info["eos_token_ids"] == [2]
    assert (info["bos_token"], info["eos_token"]) == ("<|bos|>", "<|im_end|>")
    assert "<|im_start|>" in info["chat_template"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "Exactly one of 'prompt' and 'messages' is needed, got none"),
        (
            "/tokenize",
            {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
            "got prompt and messages",
        ),
        ("/tokenize", {"prompt": 3}, "'prompt' should be a valid string"),
        ("/tokenize", {"prompt": "x" * 100_000}, "maximum context length is 256 tokens"),
        ("/detokenize", {"tokens": [1, 999_999]}, "token ids must be between 0 and"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {}, "'tokens' is required"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "other"),
        ("/invocations", {}, "'prompt' is required"),
    ],
)
def test_bad_requests_name_the_field(
    http: httpx2.Client, path: str, body: dict[str, Any], message: str
) -> None:
    reply = http.post(path, json=body)

    assert reply.status_code in (400, 404)
    assert message in reply.json()["error"]["message"]


def test_invocations_serves_what_the_body_asks_for(http: httpx2.Client) -> None:
    chat = posted(http, "/invocations", messages=[{"role": "user", "content": "Hello"}])
    text = posted(http, "/invocations", prompt="Hello")

    assert chat["object"] == "chat.completion"
    assert text["object"] == "text_completion"
    assert http.post("/invocations", content=b"{").status_code == 415
    headers = {"content-type": "application/json"}
    assert http.post("/invocations", content=b"{", headers=headers).status_code == 400

"""`quire serve --engine huggingface` with a model that Quire has no architecture for."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parity.cases import reference_logits
from parity.random_models import make_random_model

from quire.pipelines.hf import resolve_model
from quire.pipelines.tokenizer import TextTokenizer

CHOICE = {"choice": ["fox", "bird"]}
NEW_TOKENS = 24
PAGES = 7
"""Of 16 tokens: two of the requests run at a time, the others wait or are preempted."""


def test_a_model_that_only_transformers_has(launch: Callable[..., Any], tmp_path: Path) -> None:
    demo = resolve_model("quire-demo")
    tokenizer = TextTokenizer.from_folder(demo)
    model = make_random_model(
        "Helium", num_hidden_layers=2, vocab_size=tokenizer.vocab_size, max_position_embeddings=512
    )
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, tmp_path)
    options = ("--page-size", "16", "--kv-cache-pages", str(PAGES), "--max-length", "96")
    server = launch("--model", str(tmp_path), "--engine", "huggingface", *options)
    server.wait_ready()

    texts = ["Once upon a time", "One cold day", "The fox", "A bird"]
    asked: dict[str, Any] = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    asked |= {"logprobs": 0, "echo": True, "prompt": texts}
    reply = server.http.post("/v1/completions", json=asked)

    assert reply.status_code == 200, reply.text
    for text, choice in zip(texts, reply.json()["choices"], strict=True):
        ids = tokenizer.encode(text)
        logprobs = choice["logprobs"]["token_logprobs"]
        assert len(logprobs) == len(ids) + NEW_TOKENS
        for _ in range(NEW_TOKENS):
            ids.append(int(reference_logits(model, ids)[-1].argmax()))
        scores = reference_logits(model, ids).log_softmax(-1)
        expected = [float(scores[place, id]) for place, id in enumerate(ids[1:])]
        assert logprobs[1:] == pytest.approx(expected, abs=1e-3)

    reply = server.http.post(
        "/v1/completions",
        json={"prompt": "a", "max_tokens": 20, "temperature": 0, "structured_outputs": CHOICE},
    )
    assert reply.json()["choices"][0]["text"] in CHOICE["choice"]

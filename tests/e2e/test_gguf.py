"""`quire serve --model file.gguf`: nothing else of the model is on the disk."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_tokenizers import add_byte_level, byte_level
from parity.cases import reference_logits
from parity.gguf_writer import mixed, write_gguf
from parity.random_models import make_random_model

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}


def add_metadata(writer: gguf.GGUFWriter) -> None:
    add_byte_level(writer, "smollm", padded_to=512)
    writer.add_chat_template(TEMPLATE)
    writer.add_float32("general.sampling.temp", 0.0)


def test_a_file_is_all_that_a_server_needs(launch: Callable[..., Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "vocab_size": 512}
    model = make_random_model("Llama", num_hidden_layers=2, max_position_embeddings=512, **sizes)
    path = tmp_path / "Tiny-Q4_K_M.gguf"
    write_gguf(model, path, mixed, tokenizer=add_metadata)
    server = launch("--model", str(path), "--dtype", "float32")
    server.wait_ready()
    assert server.http.get("/v1/models").json()["data"][0]["id"] == "Tiny-Q4_K_M"

    prompt = byte_level("smollm").encode("The quick <think> 12").ids
    reply = server.http.post(
        "/v1/completions",
        json={"prompt": "The quick <think> 12", "max_tokens": 6, "logprobs": 0, "echo": True},
    ).json()
    logprobs = reply["choices"][0]["logprobs"]["token_logprobs"]
    ids = list(prompt)
    for logprob in logprobs[len(prompt) :]:
        expected = reference_logits(model, ids)[-1].log_softmax(-1)
        assert logprob == pytest.approx(float(expected.max()), abs=1e-3)
        ids.append(int(expected.argmax()))
    assert reply["usage"] == reply["usage"] | {"prompt_tokens": len(prompt)}

    message = {"role": "user", "content": "a<|im_end|>"}
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": SCHEMA}}
    reply = server.http.post(
        "/v1/chat/completions",
        json={"messages": [message], "max_tokens": 200, "response_format": form},
    ).json()
    assert json.loads(reply["choices"][0]["message"]["content"])["a"] in ("x", "y")

    # Other weights under open streams are noticed when the worker is replaced.
    os.utime(path)
    server.worker().kill()
    assert server.process.wait(20) == 3
    assert "the files changed since the start" in server.log


@pytest.mark.parametrize(
    ("size", "message"), [(900_000, "expected a file of at least"), (3, "magic")]
)
def test_a_file_that_was_cut_is_refused_in_one_line(
    size: int, message: str, launch: Callable[..., Any], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    path = tmp_path / "cut.gguf"
    write_gguf(make_random_model("Llama", **sizes), path, mixed)
    os.truncate(path, size)

    server = launch("--model", str(path))

    assert server.process.wait(20) == 3
    assert f"quire: error: {path}: " in server.log
    assert message in server.log.splitlines()[-1]

"""Embedding models served: the official client's vectors equal transformers', and survive kill -9."""

import asyncio
import subprocess
import sys

import numpy as np
import openai
import pytest
import tokenizers
from embedding_models import TEXTS, expected, write_bert, write_qwen3

from quire.config.settings import ModelSettings
from quire.pipelines.text_encoder import TextEncoder

OPTIONS = ("--device", "cpu", "--threads", "1", "--dtype", "float32")


class Model:
    """A served folder, the official client, and the folder's tokenizer."""

    def __init__(self, launch, folder, pooling: str) -> None:
        self.folder, self.pooling = folder, pooling
        self.server = launch("--model", str(folder), "--served-model-name", "tiny", *OPTIONS)
        self.client = openai.OpenAI(base_url=f"{self.server.url}/v1", api_key="x", max_retries=0)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def expected(self, text: str) -> np.ndarray:
        return expected(self.folder, self.ids(text), self.pooling)

    def embed(self, given, **fields) -> np.ndarray:
        reply = self.client.embeddings.create(model="tiny", input=given, **fields)
        assert [row.index for row in reply.data] == list(range(len(reply.data)))
        return np.array([row.embedding for row in reply.data], np.float32)


@pytest.fixture(scope="module")
def models(launch, tmp_path_factory):
    made = {
        "bert": Model(launch, write_bert(tmp_path_factory.mktemp("bert")), "mean"),
        "qwen3": Model(launch, write_qwen3(tmp_path_factory.mktemp("qwen3")), "last"),
    }
    for model in made.values():
        model.server.wait_ready()
    return made


@pytest.fixture(params=["bert", "qwen3"])
def model(models, request):
    return models[request.param]


def test_vectors_equal_transformers_in_every_form(model):
    wanted = np.stack([model.expected(text) for text in TEXTS])

    packed = model.embed(TEXTS)
    np.testing.assert_allclose(packed, wanted, atol=1e-5)
    assert np.array_equal(model.embed(TEXTS, encoding_format="float"), packed)
    assert np.array_equal(model.embed([model.ids(text) for text in TEXTS]), packed)
    assert np.array_equal(model.embed(TEXTS[1]), packed[1:2])
    assert np.array_equal(model.embed(model.ids(TEXTS[1])), packed[1:2])
    values = {"model": str(model.folder), "device": "cpu", "threads": 1, "dtype": "float32"}
    offline = TextEncoder(ModelSettings.model_validate(values))
    assert np.array_equal(offline.encode(TEXTS), packed)


def test_more_texts_than_the_queue_holds(model):
    texts = [f"{'fox ' * (index % 7)}one" for index in range(400)]
    alone = {text: model.embed(text)[0] for text in dict.fromkeys(texts)}

    for text, vector in zip(texts, model.embed(texts), strict=True):
        assert np.array_equal(vector, alone[text])


def test_dimensions_usage_and_metrics(model):
    whole = model.embed("one fox")[0]
    np.testing.assert_allclose(
        model.embed("one fox", dimensions=5)[0], whole[:5] / np.linalg.norm(whole[:5]), atol=1e-6
    )
    before = model.server.metric("vllm:prompt_tokens_total")
    done = model.server.metric("vllm:request_success_total")

    reply = model.client.embeddings.create(model="tiny", input=TEXTS[:2])

    tokens = sum(len(model.ids(text)) for text in TEXTS[:2])
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (tokens, tokens)
    assert model.server.metric("vllm:prompt_tokens_total") - before == tokens
    assert model.server.metric("vllm:request_success_total") - done == 2
    assert model.server.metric("vllm:generation_tokens_total") == 0


def test_errors_name_the_field(model):
    with pytest.raises(openai.BadRequestError, match="'dimensions' must be at most") as refused:
        model.embed("fox", dimensions=65)
    assert refused.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        model.embed([[5] * 600])
    with pytest.raises(openai.NotFoundError):
        model.client.embeddings.create(model="other", input="fox")
    with pytest.raises(openai.BadRequestError, match="makes embeddings; use /v1/embeddings"):
        model.client.completions.create(model="tiny", prompt="fox")
    messages = [{"role": "user", "content": "fox"}]
    with pytest.raises(openai.BadRequestError, match="makes embeddings; use /v1/embeddings"):
        model.client.chat.completions.create(model="tiny", messages=messages)


def test_tokenize_counts_what_embeddings_reads(model):
    text = "one fox to the rivers"
    told = model.server.http.post("/tokenize", json={"prompt": text}).json()
    assert told["tokens"] == model.ids(text)
    bare = model.server.http.post(
        "/tokenize", json={"prompt": text, "add_special_tokens": False}
    ).json()
    back = model.server.http.post("/detokenize", json={"tokens": bare["tokens"]}).json()
    assert back == {"prompt": text}


async def test_kill_9_of_the_worker_under_32_requests(model, connect):
    texts = [f"{'one fox went ' * (20 + index)}to the river" for index in range(32)]
    alone = [model.embed(text)[0] for text in texts]
    client = connect(model.server)
    restarts = model.server.metric("quire_worker_restarts_total")
    model.server.worker().suspend()
    asking = [
        asyncio.create_task(client.embeddings.create(model="tiny", input=text)) for text in texts
    ]
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in asking)
    model.server.worker().kill()

    replies = await asyncio.gather(*asking)

    for reply, vector in zip(replies, alone, strict=True):
        assert np.array_equal(np.float32(reply.data[0].embedding), vector)
    assert model.server.metric("quire_worker_restarts_total") == restarts + 1
    model.server.wait_idle()


def test_a_model_that_generates_needs_the_task(launch, models, tmp_path):
    folder = write_qwen3(tmp_path, modules=False)
    plain = launch("--model", str(folder), *OPTIONS)
    told = launch("--model", str(folder), "--task", "embeddings", *OPTIONS)
    plain.wait_ready()
    told.wait_ready()

    reply = plain.http.post("/v1/embeddings", json={"input": "fox"})
    assert reply.status_code == 400
    assert "--task embeddings" in reply.json()["error"]["message"]
    assert plain.http.post("/v1/completions", json={"prompt": "fox"}).status_code == 200
    vector = told.http.post("/v1/embeddings", json={"input": "fox"}).json()["data"][0]["embedding"]
    assert np.array_equal(np.float32(vector), models["qwen3"].embed("fox")[0])


def test_an_encoder_is_no_generator(launch, models):
    server = launch("--model", str(models["bert"].folder), "--task", "generate", *OPTIONS)

    assert server.process.wait(20) == 2
    assert "BertModel makes embeddings and generates no text" in server.log


def quire(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "quire.server", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_an_encoder_is_planned(models):
    told = quire("plan", "--model", str(models["bert"].folder), "--hardware", "h100")

    assert "max length" in told and "220 tokens" in told
    assert "encode  texts    1" in told
    assert "pages" not in told


def test_tokens_and_ends_add_up(model):
    names = (
        "vllm:prompt_tokens_total",
        "vllm:request_prompt_tokens_sum",
        "vllm:iteration_tokens_total_sum",
        "vllm:request_success_total",
        "vllm:request_params_n_sum",
        "vllm:generation_tokens_total",
    )
    model.server.wait_idle()
    before = [model.server.metric(name) for name in names]

    replies = [
        model.client.embeddings.create(model="tiny", input=texts)
        for texts in (TEXTS, TEXTS[:1], TEXTS * 2)
    ]
    model.server.wait_idle()

    tokens = sum(reply.usage.prompt_tokens for reply in replies)
    texts = sum(len(reply.data) for reply in replies)
    gained = [model.server.metric(name) - old for name, old in zip(names, before, strict=True)]
    # A step computes what the prefix cache does not have.
    assert 0 < gained.pop(2) <= tokens
    assert gained == [tokens, tokens, texts, texts, 0]

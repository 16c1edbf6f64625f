"""`TextEncoder` over an encoder: batches, pooling, prompts; transformers is the oracle."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from parity.families.encoders import VOCAB_SIZE, make_encoder

from quire.config.settings import ModelSettings
from quire.pipelines.text_encoder import TextEncoder, batches

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "fox", "went", "to", "the", "river", "find"]
TEXTS = ["one fox", "the river", "one fox went to the river " * 9, "fox"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    make_encoder("BertModel").save_pretrained(path)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "find "}, "default_prompt_name": None})
    )
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    settings = {"model": str(folder), "threads": 1, "max_batch_input_tokens": 32, "device": "cpu"}
    return TextEncoder(ModelSettings.model_validate(settings))


def expected(folder: Path, text: str, pooling: str) -> np.ndarray:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    with torch.inference_mode():
        states = model(torch.tensor([ids])).last_hidden_state[0]
    pooled = {"cls": states[0], "mean": states.mean(0), "last": states[-1]}[pooling]
    return torch.nn.functional.normalize(pooled, dim=0).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_vectors_equal_transformers(encoder: TextEncoder, folder: Path, pooling: str) -> None:
    vectors = encoder.encode(TEXTS, pooling=pooling)

    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, expected(folder, text, pooling), atol=1e-5)


def test_a_vector_has_the_same_bits_alone_and_among_others(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)

    for text, vector in zip(TEXTS, together, strict=True):
        assert np.array_equal(encoder.encode([text])[0], vector)


def test_a_prompt_is_put_before_the_text(encoder: TextEncoder) -> None:
    assert np.array_equal(
        encoder.encode(["the river"], prompt_name="query"), encoder.encode(["find the river"])
    )
    with pytest.raises(ValueError, match="prompt_name: nope is not a prompt of this model: query"):
        encoder.encode(["fox"], prompt_name="nope")


def test_a_text_beyond_the_models_positions_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="a text has 222 tokens, the model takes 220"):
        encoder.encode(["fox " * 220])


def test_batches_hold_neighbours_that_fit() -> None:
    texts = [[0] * size for size in (10, 20, 5, 40, 1, 31)]

    assert [[len(text) for text in batch] for batch in batches(texts, 32)] == [
        [10, 20],
        [5],
        [40],
        [1, 31],
    ]
    assert len(WORDS) < VOCAB_SIZE


def test_the_engine_of_transformers_gives_the_same_vectors(
    encoder: TextEncoder, folder: Path
) -> None:
    settings = {"model": str(folder), "threads": 1, "device": "cpu", "engine": "huggingface"}
    other = TextEncoder(ModelSettings.model_validate(settings))

    np.testing.assert_allclose(other.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)
